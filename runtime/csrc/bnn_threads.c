/* A pool of threads that wait for work; chunks are handed out dynamically.

   Static chunks with barriers collapse when the machine takes one core away; with dynamic ones the
   others go on. Callers on several threads take turns, each with as many threads as it has asked
   for: what one of them asks for changes nothing for another that is in a kernel. A child of fork()
   has none of the workers and starts its own. */
#include "bnn.h"

#include <pthread.h>
#include <stdatomic.h>

enum { MAX_THREADS = 64 };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* held by the caller for its whole job */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    pthread_t workers[MAX_THREADS];
    int n_workers;     /* running, beside the caller */
    int n_threads;     /* of the present job, the caller included */
    int busy;          /* workers that have not finished the present job */
    uint64_t job;      /* number of the present job */
    bnn_body body;
    void *context;
    i64 n, grain;
    atomic_llong next; /* first index not handed out yet */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static atomic_int default_threads = 1;
static _Thread_local int own_threads; /* 0: as many as the default */

/* fork() waits for the present job, so that a child finds no lock in the hands of another thread. */
static void before_fork(void) {
    pthread_mutex_lock(&turn);
    pthread_mutex_lock(&pool.lock);
}

static void in_parent(void) {
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&turn);
}

static void in_child(void) {
    pool.n_workers = pool.busy = 0;
    pthread_cond_init(&pool.work, NULL);
    pthread_cond_init(&pool.done, NULL);
    in_parent();
}

__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(before_fork, in_parent, in_child);
}

static void take_chunks(int thread) {
    for (;;) {
        i64 begin = atomic_fetch_add(&pool.next, pool.grain);
        if (begin >= pool.n) return;
        pool.body(pool.context, begin, bnn_min(begin + pool.grain, pool.n), thread);
    }
}

static void *worker(void *argument) {
    int thread = (int)(intptr_t)argument;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.job == seen) pthread_cond_wait(&pool.work, &pool.lock);
        seen = pool.job;
        int takes_part = thread < pool.n_threads;
        pthread_mutex_unlock(&pool.lock);
        if (takes_part) take_chunks(thread);
        pthread_mutex_lock(&pool.lock);
        if (--pool.busy == 0) pthread_cond_signal(&pool.done);
    }
    return NULL;
}

static void start_workers(void) {
    while (pool.n_workers < pool.n_threads - 1) {
        int thread = pool.n_workers + 1;
        if (pthread_create(&pool.workers[thread], NULL, worker, (void *)(intptr_t)thread))
            return; /* the system gives no more: the others do the work */
        pthread_detach(pool.workers[thread]);
        pool.n_workers++;
    }
}

void bnn_parallel(i64 n, i64 grain, bnn_body body, void *context) {
    const int n_threads = bnn_threads();
    if (n <= 0) return;
    if (n_threads == 1 || n <= grain) {
        body(context, 0, n, 0);
        return;
    }
    pthread_mutex_lock(&turn);
    pthread_mutex_lock(&pool.lock);
    pool.n_threads = n_threads;
    pool.body = body;
    pool.context = context;
    pool.n = n;
    pool.grain = bnn_max(grain, 1);
    atomic_store(&pool.next, 0);
    start_workers();
    pool.busy = pool.n_workers;
    pool.job++;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    take_chunks(0);
    pthread_mutex_lock(&pool.lock);
    while (pool.busy > 0) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&turn);
}

static int allowed(int n) { return (int)bnn_min(bnn_max(n, 1), MAX_THREADS); }

int bnn_threads(void) { return own_threads ? own_threads : atomic_load(&default_threads); }

void bnn_set_threads(int n) { own_threads = allowed(n); }

void bnn_set_default_threads(int n) { atomic_store(&default_threads, allowed(n)); }
