/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_parse.c - from a chain of guest buffers to one I/O request (virtio 1.2 §5.2.6)
 *
 * THEORY OF OPERATION
 *
 * A request is a 16-byte header, data, and a status byte; the driver may cut it into descriptors wherever it likes
 * (§2.7.4.1). The header is copied once. What can't hold header and status breaks the queue, since it could not even be
 * answered; everything else that is wrong is answered: IOERR for what the disk can't do, UNSUPP for what it doesn't know.
 */
#include <errno.h>

#include "blk_queue.h"

#define DATA_MAX (BLK_SEG_MAX * BLK_SIZE_MAX) /* what a driver that heeds seg_max and size_max can ask for */

/* Does [sector, sector + len) lie on the disk? @len in bytes. */
static bool in_range(const struct blk_dev *dev, uint64_t sector, uint64_t len)
{
	uint64_t capacity = load_relaxed(&dev->capacity);

	return sector <= capacity && len / BLK_SECTOR <= capacity - sector;
}

/* What makes a write durable before it is answered, where nobody flushes later. Return: IO_F_DSYNC or 0 */
static uint8_t durability(const struct blk_dev *dev)
{
	return load_relaxed(&dev->write_back) ? 0 : IO_F_DSYNC;
}

static int parse_rw(struct blk_req *req, struct iovec *data, unsigned count, uint64_t sector, uint64_t len, bool write)
{
	const struct blk_dev *dev = req->queue->dev;
	struct io_req *io = &req->io;

	if (write && dev->read_only)
		return blk_reject(req, VIRTIO_BLK_S_IOERR, BLK_E_READ_ONLY), 0;
	if (len % BLK_SECTOR || len > DATA_MAX || !in_range(dev, sector, len))
		return blk_reject(req, VIRTIO_BLK_S_IOERR, BLK_E_RANGE), 0;
	io->len = len;
	if (len == 0)
		return blk_finish(req, VIRTIO_BLK_S_OK, now_ns()), 0;
	io->op = write ? IO_WRITE : IO_READ;
	io->flags = write ? durability(dev) : 0;
	io->offset = sector * BLK_SECTOR;
	io->iov = data;
	io->iovcnt = count;
	return 1;
}

bool blk_next_range(struct blk_req *req)
{
	const struct blk_range *range = &req->range_list[req->range];

	if (req->range == req->ranges)
		return false;
	req->range++;
	req->io.offset = range->offset;
	req->io.len = range->len;
	req->io.flags = (uint8_t)range->flags;
	return true;
}

/* §5.2.6.2: what a driver may ask in a DISCARD or WRITE_ZEROES segment. Return: 0, or the status to answer with */
static uint8_t check_range(const struct blk_dev *dev, const struct virtio_blk_discard_write_zeroes *seg, bool zeroes,
			   struct blk_range *range)
{
	uint32_t max = zeroes ? dev->max_write_zeroes_sectors : dev->max_discard_sectors;

	if (seg->flags & ~(zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0u))
		return VIRTIO_BLK_S_UNSUPP;
	if (seg->num_sectors > max || !in_range(dev, seg->sector, (uint64_t)seg->num_sectors * BLK_SECTOR))
		return VIRTIO_BLK_S_IOERR;
	range->offset = seg->sector * BLK_SECTOR;
	range->len = (uint64_t)seg->num_sectors * BLK_SECTOR;
	/* A discard promises nothing of what is read there, after a loss of power no more than before it. */
	range->flags = zeroes ? (seg->flags ? IO_F_UNMAP : 0) | durability(dev) : 0;
	return 0;
}

static int parse_ranges(struct blk_req *req, struct iovec *data, uint64_t len, bool zeroes)
{
	const struct blk_dev *dev = req->queue->dev;
	struct virtio_blk_discard_write_zeroes segs[BLK_RANGES_MAX];
	struct blk_range ranges[BLK_RANGES_MAX];
	unsigned n = (unsigned)(len / sizeof(segs[0])), kept = 0;

	if (dev->read_only)
		return blk_reject(req, VIRTIO_BLK_S_IOERR, BLK_E_READ_ONLY), 0;
	if ((zeroes ? dev->max_write_zeroes_sectors : dev->max_discard_sectors) == 0)
		return blk_reject(req, VIRTIO_BLK_S_UNSUPP, BLK_E_UNSUPPORTED), 0;
	if (len == 0 || len % sizeof(segs[0]) || n > BLK_RANGES_MAX)
		return blk_reject(req, VIRTIO_BLK_S_IOERR, BLK_E_RANGE), 0;
	virtq_take(data, segs, len);
	for (unsigned i = 0; i < n; i++) {
		uint8_t status = check_range(dev, &segs[i], zeroes, &ranges[kept]);

		if (status)
			return blk_reject(req, status, status == VIRTIO_BLK_S_UNSUPP ? BLK_E_UNSUPPORTED : BLK_E_RANGE),
			       0;
		if (ranges[kept].len > 0)
			kept++;
	}
	/* The iovecs have served: their place holds the extents from here on. */
	memcpy(req->range_list, ranges, kept * sizeof(ranges[0]));
	req->range = 0;
	req->ranges = (uint8_t)kept;
	req->io.op = zeroes ? IO_WRITE_ZEROES : IO_DISCARD;
	req->io.iovcnt = 0;
	if (!blk_next_range(req))
		return blk_finish(req, VIRTIO_BLK_S_OK, now_ns()), 0;
	return 1;
}

/* Answer with @left bytes, or what of them the driver has room for. */
static int answer_bytes(struct blk_req *req, const struct iovec *data, unsigned count, const uint8_t *from, size_t left)
{
	const uint8_t *begin = from;

	for (unsigned i = 0; i < count && left > 0; i++) {
		size_t n = data[i].iov_len < left ? data[i].iov_len : left;

		memcpy(data[i].iov_base, from, n);
		from += n;
		left -= n;
	}
	return blk_finish_bytes(req, (uint32_t)(from - begin)), 0;
}

static int answer_get_lifetime(struct blk_req *req, const struct iovec *data, unsigned count)
{
	uint64_t lifetime = load_relaxed(&req->queue->dev->lifetime);

	if (lifetime == 0)
		return blk_reject(req, VIRTIO_BLK_S_UNSUPP, BLK_E_UNSUPPORTED), 0;
	if (req->chain.in_len - 1 < BLK_LIFETIME_LEN)
		return blk_reject(req, VIRTIO_BLK_S_IOERR, BLK_E_RANGE), 0;
	return answer_bytes(req, data, count, (const uint8_t *)&lifetime, BLK_LIFETIME_LEN);
}

int blk_parse(struct blk_queue *q, struct blk_req *req)
{
	struct virtq_chain *chain = &req->chain;
	unsigned out = chain->out_count, in = chain->in_count;
	struct iovec *iov = req->iov, *last = &iov[out + in - 1];
	struct virtio_blk_outhdr header;
	unsigned used;

	if (unlikely(in == 0 || chain->out_len < sizeof(header)))
		return virtq_fail(&q->base.vq, VIRTQ_FAULT_REQUEST);
	if (likely(iov->iov_len == sizeof(header))) {
		copy_once(&header, iov->iov_base, sizeof(header));
		used = 1;
	} else {
		used = virtq_take(iov, &header, sizeof(header));
	}
	iov += used;
	out -= used;
	last->iov_len--;
	req->status = (uint8_t *)last->iov_base + last->iov_len;
	if (last->iov_len == 0)
		in--;

	switch (header.type) {
	case VIRTIO_BLK_T_IN:
		req->op = BLK_READ;
		return parse_rw(req, iov + out, in, header.sector, chain->in_len - 1, false);
	case VIRTIO_BLK_T_OUT:
		req->op = BLK_WRITE;
		return parse_rw(req, iov, out, header.sector, chain->out_len - sizeof(header), true);
	case VIRTIO_BLK_T_FLUSH:
		req->op = BLK_FLUSH;
		req->io.op = IO_FLUSH;
		req->io.offset = req->io.len = 0;
		req->io.iovcnt = 0;
		req->io.flags = 0;
		return 1;
	case VIRTIO_BLK_T_DISCARD:
		req->op = BLK_DISCARD;
		return parse_ranges(req, iov, chain->out_len - sizeof(header), false);
	case VIRTIO_BLK_T_WRITE_ZEROES:
		req->op = BLK_WRITE_ZEROES;
		return parse_ranges(req, iov, chain->out_len - sizeof(header), true);
	case VIRTIO_BLK_T_GET_ID:
		req->op = BLK_GET_ID;
		return answer_bytes(req, iov + out, in, req->queue->dev->serial, BLK_SERIAL_LEN);
	case VIRTIO_BLK_T_GET_LIFETIME:
		req->op = BLK_OTHER;
		return answer_get_lifetime(req, iov + out, in);
	default:
		req->op = BLK_OTHER;
		return blk_reject(req, VIRTIO_BLK_S_UNSUPP, BLK_E_UNSUPPORTED), 0;
	}
}
