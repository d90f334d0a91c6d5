// SPDX-License-Identifier: GPL-2.0-only
/*
 * device.c - /dev/eventfd_poll, which makes watched eventfds (EVENTFD_POLL_WRAP)
 *
 * EVENTFD_SET_POLL for kernels that don't have it. One should open the device once
 * for each epoll: see spinner.c, and README.md for what users should know.
 */

#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/rcupdate.h>

#include "../uapi/eventfd_poll_module.h"
#include "spinner.h"
#include "watch.h"

static int device_open(struct inode *inode, struct file *file)
{
	file->private_data = spinner_new();
	return file->private_data ? 0 : -ENOMEM;
}

static int device_release(struct inode *inode, struct file *file)
{
	spinner_put(file->private_data);
	return 0;
}

static long device_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd != EVENTFD_POLL_WRAP)
		return -ENOTTY;
	return watch_new(file->private_data, arg);
}

static const struct file_operations device_fops = {
	.owner		= THIS_MODULE,
	.open		= device_open,
	.release	= device_release,
	.unlocked_ioctl	= device_ioctl,
	.compat_ioctl	= device_ioctl,
	.llseek		= noop_llseek,
};

/* For everybody, as sockets are: README.md argues why. */
static struct miscdevice device = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "eventfd_poll",
	.fops	= &device_fops,
	.mode	= 0666,
};

static int __init eventfd_poll_init(void)
{
	return misc_register(&device);
}

static void __exit eventfd_poll_exit(void)
{
	misc_deregister(&device);
	/* No file is left, but an epoll may still be running a NAPI that it found before, see spinner_free(). */
	synchronize_rcu();
}

module_init(eventfd_poll_init);
module_exit(eventfd_poll_exit);

MODULE_DESCRIPTION("EVENTFD_SET_POLL: poll, select and epoll on an eventfd also watch a word of memory");
MODULE_AUTHOR("The kpoll authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
