/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_chains.c - whatever a driver writes, a popped buffer lies inside guest memory and the totals add up */
#include "fuzz_guest.h"

#define CAP 40

static bool inside(const struct iovec *iov)
{
	for (unsigned i = 0; i < 2; i++) {
		const uint8_t *start = mem_map_ptr(maps[i]), *at = iov->iov_base;

		if (at >= start && at < start + REGION && iov->iov_len > 0 &&
		    iov->iov_len <= (size_t)(start + REGION - at))
			return true;
	}
	return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtq_config cfg;
	struct virtq q;

	if (!fuzz_guest(data, size, &cfg) || virtq_init(&q, &cfg, table) < 0)
		return 0;
	for (unsigned popped = 0; popped < 200; popped++) {
		struct virtq_chain chain;
		struct iovec iov[CAP];
		uint64_t out = 0, in = 0;
		bool more = virtq_more(&q);
		int rc = virtq_pop(&q, &chain, iov, CAP);

		MUST((rc == 0) == !more);
		if (rc <= 0) {
			MUST(rc == 0 || q.fault != VIRTQ_FAULT_NONE);
			break;
		}
		MUST(chain.out_count + chain.in_count <= CAP && chain.out_count + chain.in_count > 0);
		MUST(chain.id < q.size && chain.ndesc >= 1 && chain.ndesc <= q.size);
		for (unsigned i = 0; i < (unsigned)chain.out_count + chain.in_count; i++) {
			MUST(inside(&iov[i]));
			*(i < chain.out_count ? &out : &in) += iov[i].iov_len;
		}
		MUST(out == chain.out_len && in == chain.in_len);
		virtq_push(&q, &chain, chain.in_len);
		if (popped % 3 == 0)
			virtq_publish(&q);
	}
	virtq_publish(&q);
	return 0;
}
