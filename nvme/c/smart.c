/* SPDX-License-Identifier: Apache-2.0 */
/*
 * smart.c - how an NVMe device is, and a process that does nothing but ask for it
 */
#include <errno.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "smart.h"

#define GET_LOG_PAGE 0x02
#define LID_SMART 0x02u
#define NSID_ALL 0xFFFFFFFFu /* the controller's page, not a namespace's */

int smart_read(int device, uint8_t page[SMART_BYTES])
{
	struct nvme_admin_cmd cmd = {
		.opcode = GET_LOG_PAGE,
		.nsid = NSID_ALL,
		.addr = (uintptr_t)page,
		.data_len = SMART_BYTES,
		.cdw10 = LID_SMART | (SMART_BYTES / 4 - 1) << 16, /* NUMDL, 0-based, in dwords */
	};
	int ret = ioctl(device, NVME_IOCTL_ADMIN_CMD, &cmd);

	return ret < 0 ? -errno : ret;
}

/*
 * Ask the device from now on that came by @news last, if one came. @device is the lowest number that is free once it is
 * closed, so what comes gets it: a call that takes another number isn't needed, and so not allowed.
 */
static void take_news(int device, int news)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec iov = { &byte, sizeof(byte) };

	while (recv(news, &byte, sizeof(byte), MSG_PEEK | MSG_DONTWAIT) == sizeof(byte)) {
		struct msghdr msg = {
			.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = &control,
			.msg_controllen = CMSG_LEN(sizeof(int)), /* the kernel closes what else comes along */
		};

		close(device);
		if (recvmsg(news, &msg, MSG_DONTWAIT) < 0)
			break;
	}
}

int smart_serve(int device, int sock, int news, const void *filter, uint16_t length)
{
	struct sock_fprog program = { .len = length, .filter = (struct sock_filter *)filter };
	struct smart_answer answer = { 0 };
	char asked;

	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		return -errno;
	while (read(sock, &asked, sizeof(asked)) == sizeof(asked)) {
		take_news(device, news);
		answer.status = smart_read(device, answer.page);
		if (write(sock, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
	_exit(0);
}
