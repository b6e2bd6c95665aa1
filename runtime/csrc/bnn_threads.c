/* A pool of threads that wait for work; chunks are handed out dynamically.

   Static chunks with barriers collapse when the machine takes one core away; with dynamic ones the
   others go on. Callers on several threads take turns. */
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
    int n_threads;     /* wanted, the caller included */
    int busy;          /* workers that have not finished the present job */
    uint64_t job;      /* number of the present job */
    bnn_body body;
    void *context;
    i64 n, grain;
    atomic_llong next; /* first index not handed out yet */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER,
          .n_threads = 1};

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
        if (pthread_create(&pool.workers[thread], NULL, worker, (void *)(intptr_t)thread)) {
            pool.n_threads = pool.n_workers + 1; /* the system gives no more */
            return;
        }
        pthread_detach(pool.workers[thread]);
        pool.n_workers++;
    }
}

void bnn_parallel(i64 n, i64 grain, bnn_body body, void *context) {
    if (n <= 0) return;
    if (pool.n_threads == 1 || n <= grain) {
        body(context, 0, n, 0);
        return;
    }
    pthread_mutex_lock(&turn);
    pthread_mutex_lock(&pool.lock);
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

int bnn_threads(void) { return pool.n_threads; }

void bnn_set_threads(int n) {
    pthread_mutex_lock(&pool.lock);
    pool.n_threads = (int)bnn_min(bnn_max(n, 1), MAX_THREADS);
    pthread_mutex_unlock(&pool.lock);
}
