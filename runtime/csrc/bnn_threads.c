/* A pool of threads that wait for work; chunks are handed out dynamically.

   Static chunks with barriers collapse when the machine takes one core away; with dynamic ones the
   others go on, and a job that is done does not wait for workers that have not come. The kernels of
   a step follow each other closely, and to wake a thread takes as long as many of them: whoever waits
   watches for a while before it sleeps. Callers on several threads take turns, each with as many
   threads as it has asked for: what one of them asks for changes nothing for another that is in a
   kernel. A child of fork() has none of the workers and starts its own. */
#include "bnn.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum { MAX_THREADS = 64, WATCH_NS = 100000, LOOKS = 32, SHARES = 4 };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* held by the caller for its whole job */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    int n_workers;  /* running, beside the caller */
    int n_asleep;   /* of them */
    int n_threads;  /* of the present job, the caller included */
    int is_open;    /* whether workers may still take part in it */
    bnn_body body;
    void *context;
    i64 n, grain;
    atomic_int caller_sleeps;
    _Alignas(64) _Atomic i64 next; /* first index not handed out yet */
    _Alignas(64) atomic_uint job;   /* number of the present job */
    _Alignas(64) atomic_uint busy;  /* workers that take part in it */
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
    pool.n_workers = pool.n_asleep = 0;
    pthread_cond_init(&pool.work, NULL);
    pthread_cond_init(&pool.done, NULL);
    in_parent();
}

__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(before_fork, in_parent, in_child);
}

static i64 nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (i64)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__ARM_ARCH)
    __asm__ volatile("yield");
#endif
}

/* Whether a value becomes another one within WATCH_NS. */
static int changes(atomic_uint *value, unsigned from) {
    const i64 end = nanoseconds() + WATCH_NS;
    do
        for (int i = 0; i < LOOKS; i++, relax())
            if (atomic_load_explicit(value, memory_order_acquire) != from) return 1;
    while (nanoseconds() < end);
    return 0;
}

/* The next chunk: a multiple of the grain, a share of what is left. Large ones first, small ones last, so
   that nobody waits long for the others. 0 when nothing is left. */
static i64 next_chunk(i64 *begin) {
    i64 size;
    *begin = atomic_load(&pool.next);
    do {
        if (*begin >= pool.n) return 0;
        size = pool.grain * bnn_max(1, (pool.n - *begin) / pool.grain / (SHARES * pool.n_threads));
    } while (!atomic_compare_exchange_weak(&pool.next, begin, *begin + size));
    return bnn_min(size, pool.n - *begin);
}

static void take_chunks(int thread) {
    i64 begin, size;
    while ((size = next_chunk(&begin))) pool.body(pool.context, begin, begin + size, thread);
}

/* Wait for the next job after number `seen` that so many threads are for; whether it is open still. */
static int join(int thread, unsigned *seen) {
    pthread_mutex_lock(&pool.lock);
    do {
        pool.n_asleep++;
        while (atomic_load(&pool.job) == *seen) pthread_cond_wait(&pool.work, &pool.lock);
        pool.n_asleep--;
        *seen = atomic_load(&pool.job);
    } while (thread >= pool.n_threads);
    int takes_part = pool.is_open;
    if (takes_part) atomic_fetch_add(&pool.busy, 1);
    pthread_mutex_unlock(&pool.lock);
    return takes_part;
}

static void leave(void) {
    if (atomic_fetch_sub(&pool.busy, 1) > 1 || !atomic_load(&pool.caller_sleeps)) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_signal(&pool.done);
    pthread_mutex_unlock(&pool.lock);
}

static void *worker(void *argument) {
    int thread = (int)(intptr_t)argument;
    unsigned seen = 0;
    for (;;) {
        if (join(thread, &seen)) {
            take_chunks(thread);
            leave();
        }
        changes(&pool.job, seen);
    }
    return NULL;
}

static void start_workers(void) {
    while (pool.n_workers < pool.n_threads - 1) {
        pthread_t started;
        if (pthread_create(&started, NULL, worker, (void *)(intptr_t)(pool.n_workers + 1)))
            return; /* the system gives no more: the others do the work */
        pthread_detach(started);
        pool.n_workers++;
    }
}

/* Let workers take part in a job. */
static void open_job(int n_threads, i64 n, i64 grain, bnn_body body, void *context) {
    pthread_mutex_lock(&pool.lock);
    pool.n_threads = n_threads;
    pool.body = body;
    pool.context = context;
    pool.n = n;
    pool.grain = bnn_max(grain, 1);
    pool.is_open = 1;
    atomic_store(&pool.next, 0);
    start_workers();
    atomic_fetch_add(&pool.job, 1);
    int sleep = pool.n_asleep > 0;
    pthread_mutex_unlock(&pool.lock);
    if (sleep) pthread_cond_broadcast(&pool.work);
}

/* Wait for those that take part; nobody else does from here on. */
static void close_job(void) {
    pthread_mutex_lock(&pool.lock);
    pool.is_open = 0;
    pthread_mutex_unlock(&pool.lock);
    unsigned busy = atomic_load(&pool.busy);
    while (busy && changes(&pool.busy, busy)) busy = atomic_load(&pool.busy);
    if (!busy) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_sleeps, 1);
    while (atomic_load(&pool.busy)) pthread_cond_wait(&pool.done, &pool.lock);
    atomic_store(&pool.caller_sleeps, 0);
    pthread_mutex_unlock(&pool.lock);
}

void bnn_parallel(i64 n, i64 grain, bnn_body body, void *context) {
    const int n_threads = (int)bnn_min(bnn_threads(), bnn_ceil_div(n, bnn_max(grain, 1)));
    if (n <= 0) return;
    if (n_threads == 1) {
        body(context, 0, n, 0);
        return;
    }
    pthread_mutex_lock(&turn);
    open_job(n_threads, n, grain, body, context);
    take_chunks(0);
    close_job();
    pthread_mutex_unlock(&turn);
}

static int allowed(int n) { return (int)bnn_min(bnn_max(n, 1), MAX_THREADS); }

int bnn_threads(void) { return own_threads ? own_threads : atomic_load(&default_threads); }

void bnn_set_threads(int n) { own_threads = allowed(n); }

void bnn_set_default_threads(int n) { atomic_store(&default_threads, allowed(n)); }
