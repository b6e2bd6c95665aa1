"""The pool that C kernels share their work by: each index once, in whole grains."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "runtime" / "csrc"
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

DRIVER = r"""
#include "bnn.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 200 };

struct job {
    i64 n, grain;
    int threads, counts[MOST], wrong;
};

static void count(void *context, i64 begin, i64 end, int thread) {
    struct job *job = context;
    const int is_whole = begin % job->grain == 0 && (end % job->grain == 0 || end == job->n);
    if (thread < 0 || thread >= job->threads || begin >= end || end > job->n || !is_whole)
        __atomic_store_n(&job->wrong, 1, __ATOMIC_RELAXED);
    for (i64 i = begin; i < end; i++) job->counts[i]++;
    for (volatile int i = 0; i < 100 * (end - begin); i++) {}
}

/* Sections of all sizes, some of them late enough for the workers to sleep. */
static void *run(void *argument) {
    unsigned seed = (unsigned)(size_t)argument;
    size_t wrong = 0;
    for (int i = 0; i < 1500; i++) {
        struct job job = {.n = rand_r(&seed) % MOST, .grain = 1 + rand_r(&seed) % 20,
                          .threads = 1 + rand_r(&seed) % 5};
        bnn_set_threads(job.threads);
        bnn_parallel(job.n, job.grain, count, &job);
        for (i64 k = 0; k < MOST; k++) wrong += job.counts[k] != (k < job.n);
        wrong += (size_t)job.wrong;
        if (i % 100 == 0) usleep(300);
    }
    return (void *)wrong;
}

int main(void) {
    size_t wrong = (size_t)run((void *)1);
    pthread_t other;
    void *found;
    if (pthread_create(&other, NULL, run, (void *)2)) return 1;
    wrong += (size_t)run((void *)3);
    pthread_join(other, &found);
    wrong += (size_t)found;
    const pid_t child = fork();
    if (child == 0) exit(run((void *)4) != NULL);
    int status = 1;
    waitpid(child, &status, 0);
    wrong += status != 0;
    printf("%zu\n", wrong);
    return wrong != 0;
}
"""


@pytest.mark.parametrize("flags", [["-O2"], ["-O1", "-g", "-fsanitize=thread"]], ids=["", "races"])
def test_each_index_once_in_whole_grains(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "pool.c").write_text(DRIVER)
    sources = [str(tmp_path / "pool.c"), str(CSRC / "bnn_threads.c")]
    command = [str(COMPILER), "-std=gnu11", *flags, f"-I{CSRC}", *sources, "-pthread"]
    built = subprocess.run([*command, "-o", str(tmp_path / "pool")], check=False)
    if built.returncode and "-fsanitize=thread" in flags:
        pytest.skip("the compiler has no thread sanitizer")
    found = subprocess.run(
        [str(tmp_path / "pool")], check=False, capture_output=True, text=True,
        env={**os.environ, "TSAN_OPTIONS": "die_after_fork=0"},
    )  # fmt: skip
    assert (found.returncode, found.stdout) == (0, "0\n"), found.stderr
