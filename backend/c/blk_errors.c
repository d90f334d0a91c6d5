/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_errors.c - what becomes of a request that the disk failed: --on-error
 *
 * THEORY OF OPERATION
 *
 * report	It is answered VIRTIO_BLK_S_IOERR.
 * retry	It is kept if its error is one that may pass. After a pause one kept request is tried: when it fails the
 *		pause doubles, up to RETRY_MAX_NS, and the next one is tried then; when it succeeds all are. So a disk that
 *		is gone costs one request a second, however many wait, and one bad request doesn't hold the others up.
 * stop		As QEMU's rerror=stop, werror=stop: whatever failed is kept, unless the request is to blame (EINVAL), and
 *		all that comes after it waits as well, unparsed, until blk_dev_resume(). The queues are still popped: an
 *		avail index that nobody follows would look like work for ever, and the wait set would spin on it.
 *
 * A request whose memory is gone (EFAULT) doesn't come here: the disk has no part in that, and no other try finds it back.
 *
 * A request is at every moment in exactly one place: the engine's, in our list, or answered. Its iovecs and ranges are as
 * blk_parse() made them (io.h), so trying again is queueing again, from its first byte; a read, write, flush, discard or
 * write-zeroes carried out twice is the same as once, as long as nobody was told of the first. There are never more than
 * the ring has entries.
 *
 * A queue that stops must not wait for a disk that may never return: GET_VRING_BASE is answered only when nothing is in
 * flight any more, and guest memory is unmapped after it. What the engine has comes back in a bounded time (for NVMe over
 * Fabrics fast_io_fail_tmo sees to that); what we keep goes as follows:
 *
 *	worker					front-end
 *						GET_VRING_BASE (pause, reset, migration, end)
 *	STOPPING: pops no more
 *	engine's requests come back: answered,
 *	  or kept
 *	only kept ones left:
 *	  those popped last of all are unpopped,
 *	  the others answered IOERR
 *	STOPPED, base					gets the base; unmaps guest memory
 *						SET_VRING_BASE: the same (resumed), or anew (reset)
 *	pops from there: the unpopped come again
 *
 * A ring remembers one position, not which chains are missing before it; so only a tail can be given back. When the disk is
 * gone all that is in flight fails, and the tail is everything. An error to the guest remains where a request that
 * was popped later had been answered already. It is the same when we end (SIGTERM) and QEMU reconnects: it goes on from
 * used.idx, which is where the tail begins.
 */
#include "blk_errors.h"

#include <errno.h>

#include "../../kernel/c/signal_fd.h"

#define RETRY_MIN_NS 10000000u
#define RETRY_MAX_NS 1000000000u

void blk_kept_init(struct blk_kept *k, struct blk_dev *dev, struct lane *lane)
{
	*k = (struct blk_kept){ .dev = dev, .lane = lane, .pause_ns = RETRY_MIN_NS };
}

/* A disk that was deleted under us has no bytes any more (del_gendisk()), and what it then says depends on what is asked. */
static bool gone(const struct io_target *t)
{
	return t->block_device && io_target_size(t) <= 0;
}

/*
 * May this error pass without anybody changing the request? What the block layer (blk_status_to_errno()) says of a device or
 * of the way to it, and what is short for the moment. Not among them: a bad sector (ENODATA), a checksum that doesn't match
 * (EILSEQ), a reservation that another host holds (EBADE); they are this request's, and the guest has to know.
 */
static bool may_pass(const struct io_target *t, int error)
{
	switch (error) {
	case EIO:
	case ENODEV:
	case ENXIO:
	case ETIMEDOUT:
	case EREMOTEIO: /* the target is in trouble */
	case ENOLINK:   /* a path, without another one */
	case ENOSPC:    /* a thin pool is full; also what a deleted disk says to a write */
	case ENOMEM:
	case EBUSY:
	case EAGAIN:
		return true;
	default:
		return gone(t);
	}
}

static bool wants_another_try(const struct blk_req *req, int error)
{
	const struct blk_dev *dev = req->queue->dev;

	/* The page cache has lost what this flush was for, and every later one fails as well (io_target.flush_error). */
	if (req->op == BLK_FLUSH && load_relaxed(&dev->target.cached_writes))
		return false;
	/* Nobody will stop it again, and its memory may be gone. */
	if (queue_state(&req->queue->base) == QUEUE_BROKEN)
		return false;
	/* What the disk can't do as it is asked, such as half of its blocks: nobody will repair that. */
	if (error == EINVAL && !gone(&dev->target))
		return false;
	return dev->on_error == BLK_STOP || (dev->on_error == BLK_RETRY && may_pass(&dev->target, error));
}

/* Errors begin: Python logs that, once, and says when it wants to hear of them again. */
static void tell(struct blk_dev *dev, int error)
{
	if (load_relaxed(&dev->told))
		return;
	store_relaxed(&dev->error, error);
	store_release(&dev->told, 1); /* pairs with the acquire of whoever is woken by the eventfd: its system call */
	signal_fd(dev->event_fd);
}

static void wait_last(struct blk_kept *k, struct blk_req *req)
{
	req->free_next = NULL;
	if (k->first)
		k->last->free_next = req;
	else
		k->first = req;
	k->last = req;
	count_add(&req->queue->waiting, 1);
}

static struct blk_req *wait_over(struct blk_kept *k)
{
	struct blk_req *req = k->first;

	k->first = req->free_next;
	count_add(&req->queue->waiting, -1);
	return req;
}

static void set_kept(struct blk_kept *k, struct blk_req *req)
{
	if (req->kept)
		return;
	req->kept = true;
	k->count++;
	count_add(&req->queue->stats.kept, 1);
}

bool blk_keep(struct blk_kept *k, struct blk_req *req, uint64_t now)
{
	const int error = -req->io.res;
	struct blk_dev *dev = k->dev;

	if (!wants_another_try(req, error)) {
		tell(dev, error);
		return false;
	}
	if (dev->on_error == BLK_STOP && !exchange_relaxed(&dev->stopped, 1)) {
		mb_full();                    /* pairs with blk_dev_calm() */
		store_relaxed(&dev->told, 0); /* stopped anew, which is told anew */
	}
	count_add(&req->queue->stats.failures[req->op], 1);
	if (req == k->probe) {
		k->probe = NULL;
		k->pause_ns = k->pause_ns * 2 < RETRY_MAX_NS ? k->pause_ns * 2 : RETRY_MAX_NS;
		k->retry_ns = now + k->pause_ns;
	} else if (!k->first && !k->probe) {
		k->retry_ns = now + k->pause_ns;
	}
	set_kept(k, req);
	wait_last(k, req);
	tell(dev, error); /* last: whoever hears of it finds it counted */
	return true;
}

void blk_keep_back(struct blk_kept *k, struct blk_req *req)
{
	req->unparsed = true;
	set_kept(k, req);
	wait_last(k, req);
}

/* It is over when the last one is answered; the log says that it is. */
static void forget(struct blk_kept *k, struct blk_req *req)
{
	req->kept = req->unparsed = false;
	count_add(&req->queue->stats.kept, -1);
	if (--k->count == 0)
		signal_fd(k->dev->event_fd);
}

/*
 * What was kept back has its turn now, as if it had just been popped: had it been answered before those that wait before it,
 * they could not be unpopped any more. Return: is there I/O to be done? If not, it is answered, or its queue broken
 */
static bool parsed(struct blk_kept *k, struct blk_req *req)
{
	struct blk_queue *q = req->queue;
	int ready;

	if (!req->unparsed)
		return true;
	forget(k, req);
	ready = blk_parse(q, req);
	if (ready < 0) {
		blk_forget(req);
		if (q->base.state == QUEUE_RUNNING) /* who stops it learns of the fault without that */
			lane_fail(k->lane, &q->base, VIRTQ_FAULT_NONE);
	}
	return ready > 0;
}

/* All that wait go to the engine, in their order. Return: how many */
static unsigned try_all(struct blk_kept *k, struct io_engine *io)
{
	unsigned n = 0;

	for (; k->first; n++) {
		struct blk_req *req = wait_over(k);

		if (parsed(k, req))
			io_queue(io, &req->io);
	}
	return n;
}

/* It can't be given back, nor wait any longer. */
static void give_up(struct blk_kept *k, struct blk_req *req)
{
	if (!parsed(k, req))
		return;
	if (req->kept)
		forget(k, req);
	blk_reject(req, VIRTIO_BLK_S_IOERR, BLK_E_IO);
}

void blk_kept_done(struct blk_kept *k, struct blk_req *req, bool ok, struct io_engine *io)
{
	if (req->kept)
		forget(k, req);
	if (req != k->probe)
		return;
	k->probe = NULL;
	if (ok) {
		k->pause_ns = RETRY_MIN_NS;
		try_all(k, io);
	} else { /* it is answered with its error, which was none of those that may pass */
		k->retry_ns = 0;
	}
}

/*
 * Take all that waits of a queue out of the list, and find those that were popped last of all. requests[i].popped_last is the one
 * that was popped i requests before the last one, if it waits: the array is the queue's own and as long as there are requests.
 */
static void let_go(struct blk_kept *k, struct blk_queue *q)
{
	struct blk_req *req = k->first, *others = NULL;
	uint32_t n = 0;

	for (uint32_t i = 0; i < q->reqs_used; i++)
		q->reqs[i].popped_last = NULL;
	k->first = k->last = NULL;
	while (req) {
		struct blk_req *next = req->free_next;

		if (req->queue != q) {
			count_add(&req->queue->waiting, -1);
			wait_last(k, req);
		} else if (q->base.vq.fault == VIRTQ_FAULT_NONE && q->popped - req->number < q->reqs_used) {
			q->reqs[q->popped - req->number].popped_last = req;
			n++;
		} else {
			req->free_next = others;
			others = req;
		}
		req = next;
	}
	q->waiting = 0;
	while (others) {
		req = others;
		others = req->free_next;
		give_up(k, req);
	}
	for (uint32_t i = 0, given_back = 0; n > 0 && i < q->reqs_used; i++) {
		req = q->reqs[i].popped_last;
		if (!req)
			continue;
		n--;
		if (i == given_back) {
			given_back++;
			forget(k, req);
			blk_unpop(req);
		} else {
			give_up(k, req);
		}
	}
}

unsigned blk_kept_turn(struct blk_kept *k, struct io_engine *io)
{
	struct lane *lane = k->lane;
	uint32_t resumes = load_acquire(&k->dev->resumes); /* pairs with the release in blk_dev_resume() */
	unsigned n = 0;

	for (unsigned i = 0; i < lane->count; i++) {
		struct blk_queue *q = container_of(lane->queues[i], struct blk_queue, base);

		if (q->waiting > 0 && q->base.state != QUEUE_RUNNING && q->waiting == q->base.in_flight) {
			n += q->waiting;
			let_go(k, q);
			virtq_publish(&q->base.vq);
		}
	}
	if (resumes != k->resumes && !load_relaxed(&k->dev->stopped)) {
		k->pause_ns = RETRY_MIN_NS;
		n += try_all(k, io);
	} else if (k->dev->on_error == BLK_RETRY && k->first && !k->probe && now_ns() >= k->retry_ns) {
		k->probe = wait_over(k);
		io_queue(io, &k->probe->io);
		n++;
	}
	k->resumes = resumes;
	return n;
}

int64_t blk_kept_timeout_ns(const struct blk_kept *k)
{
	uint64_t now;

	if (k->dev->on_error != BLK_RETRY || !k->first || k->probe)
		return -1;
	now = now_ns();
	return now < k->retry_ns ? (int64_t)(k->retry_ns - now) : 0;
}

void blk_dev_reopened(struct blk_dev *dev)
{
	store_release(&dev->opened, dev->opened + 1); /* pairs with the acquire in blk.c, join() */
}

bool blk_dev_calm(struct blk_dev *dev)
{
	store_relaxed(&dev->told, 0);
	mb_full(); /* pairs with blk_keep(): either we find the disk stopped, or its telling comes after our 0 */
	return !load_relaxed(&dev->stopped);
}

void blk_dev_resume(struct blk_dev *dev)
{
	store_relaxed(&dev->stopped, 0);
	store_release(&dev->resumes, dev->resumes + 1); /* pairs with the acquire in blk_kept_turn() */
}
