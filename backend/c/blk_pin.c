/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_pin.c - guest memory as what a lane's engine may have registered with the kernel
 */
#include "blk.h"

int blk_lane_pin(struct blk_lane *lane, const struct mem_table *mem)
{
	struct iovec memory[MEM_REGIONS_MAX];
	uint32_t count = mem ? mem->count : 0;

	for (uint32_t i = 0; i < count; i++)
		memory[i] = (struct iovec){ mem->regions[i].ptr, mem->regions[i].size };
	return io_engine_pin(blk_lane_engine(lane), memory, count);
}
