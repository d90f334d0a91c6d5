// SPDX-License-Identifier: Apache-2.0
/*
 * aio_learn.c - what the kernel and the device turn out to do, or not to: signals that nobody needs, RWF_NOWAIT, polling
 *
 * Signals: on devices that complete inside io_submit(2) (zram, the page cache) nobody can be asleep when they do, and
 * IOCB_FLAG_RESFD is only cost. So: once everything in the kernel was complete at the end of AIO_INLINE_RUN submits in a
 * row, the flag is left out; the first submit after which something is still under way brings it back at once. What was
 * submitted without it until then is counted as `unsignalled`, and the worker's sleep is short while there is any.
 */
#include "aio.h"

#include "../../kernel/c/signal_fd.h"

void aio_forget_nowait(struct aio *a, unsigned op)
{
	a->nowait[op] = 0;
	if (!a->engine.target->direct)
		a->helper_ops |= 1u << op;
}

/* Is everything that the kernel has of us complete, waiting in the ring? */
static bool aio_all_complete(const struct aio *a)
{
	unsigned head = a->ring->head, tail = load_relaxed(&a->ring->tail); /* a look only: aio_reap() acquires */

	return (tail >= head ? tail - head : tail + a->ring->nr - head) == a->in_kernel;
}

/* Something is still under way after a submit, or will be: completions have to signal. */
static void aio_signal_again(struct aio *a)
{
	a->inline_run = 0;
	if (!a->engine.completes_inline)
		return;
	a->engine.completes_inline = false;
	a->iocb_flags = a->signal;
	a->engine.unsignalled = a->signal == IOCB_FLAG_RESFD ? a->in_kernel : 0;
	for (unsigned i = 0; i < a->staged; i++)
		a->iocbs[i]->aio_flags = aio_flags(a, (struct io_req *)(uintptr_t)a->iocbs[i]->aio_data, a->signal);
}

void aio_forget_polling(struct aio *a)
{
	if (a->signal & IOCB_FLAG_HIPRI)
		signal_fd(a->engine.target->unpolled_fd);
	a->signal &= ~(uint32_t)IOCB_FLAG_HIPRI;
	a->iocb_flags &= a->signal;
	for (unsigned i = 0; i < a->staged; i++)
		a->iocbs[i]->aio_flags &= a->signal;
}

void aio_learn(struct aio *a, unsigned sent)
{
	if (!a->ring || a->queues)
		return;
	if (likely(aio_all_complete(a))) {
		count_add(&a->engine.stats.inline_done, sent);
		if (unlikely(a->inline_run < AIO_INLINE_RUN) && ++a->inline_run == AIO_INLINE_RUN) {
			a->engine.completes_inline = true;
			a->iocb_flags = 0;
		}
		return;
	}
	aio_signal_again(a);
}

void aio_queues(struct aio *a)
{
	a->queues = true;
	aio_signal_again(a);
}
