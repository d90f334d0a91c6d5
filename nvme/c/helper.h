/* SPDX-License-Identifier: Apache-2.0 */
/*
 * helper.h - an engine's threads for what would block its worker
 *
 * Private to nvme/c. All functions are the worker's; only the threads in helper.c run beside it.
 */
#ifndef KPOLL_IO_HELPER_H
#define KPOLL_IO_HELPER_H

#include "io.h"

/* io_helper_create() - Without threads yet: they come with the first requests. Return: 0 or -errno */
int io_helper_create(struct io_helper **out, struct io_target *t);

/* io_helper_destroy() - Join the threads. Every request must have been reaped. NULL is fine. */
void io_helper_destroy(struct io_helper *h);

/* io_helper_queue() - Have a thread carry out @r, from r->done on, with blocking calls (sync.h) */
void io_helper_queue(struct io_helper *h, struct io_req *r);

/*
 * io_helper_submitter() - Have requests with `resubmit` set handed to @submit by the threads instead of carried out. If it
 * returns 0 the request is the kernel's, comes back through the engine's own ring, and io_helper_left() accounts for it;
 * else it is carried out here after all.
 */
void io_helper_submitter(struct io_helper *h, int (*submit)(struct io_engine *e, struct io_req *r),
			 struct io_engine *e);
void io_helper_left(struct io_helper *h, struct io_stats *stats);

/* io_helper_busy() - Has it any request that did not come back yet? */
bool io_helper_busy(const struct io_helper *h);

/* io_helper_reap() - Collect what is finished, at most @max, and count into @stats; no lock, no atomic while nothing is here */
unsigned io_helper_reap(struct io_helper *h, struct io_req **done, unsigned max, struct io_stats *stats);

/* io_helper_wait() - Describe "io_helper_reap() has something" */
void io_helper_wait(struct io_helper *h, struct io_wait *w);

#endif
