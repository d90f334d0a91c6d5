// SPDX-License-Identifier: GPL-2.0-only
/*
 * watch.c - the wrapper: a descriptor that stands for an eventfd and a condition
 *
 * To poll() it is the eventfd, whose ->poll() it chains to, so that a signal wakes
 * its waiters directly; and it is readable too while the condition holds. It is a
 * socket because epoll spins for nothing else (spinner.c), and is one in name
 * only: every operation of sockets is refused.
 *
 * Who sees the condition:
 *
 * - poll, select, epoll and io_uring, on behalf of the address space that set it.
 *   A module can't mark their poll table, but has no need to: KVM_IRQFD, VFIO and
 *   vhost take eventfds, and a wrapper is none (eventfd_fget() refuses it); they
 *   get the eventfd behind it, which knows of no condition. Should somebody else
 *   in the kernel poll for himself, he asks for all events there could be, which
 *   none of the four can: their callers name them in 16 bits, or, in epoll's case,
 *   are refused EPOLLEXCLUSIVE together with the rest.
 * - Nobody else: an other address space (fork, exec, SCM_RIGHTS) sees the eventfd.
 *   Hence wake-ups carry no key: io_uring takes a key's word for the event, and
 *   would report it to whoever asks.
 *
 * poll() and select() spin by themselves while a file says POLL_BUSY_LOOP, for
 * net.core.busy_poll microseconds. So does a wrapper, until it is time to give way.
 */

#include <linux/compat.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/nsproxy.h>
#include <linux/poll.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "spinner.h"
#include "watch.h"

/**
 * watch_condition() - copy a wrapper's condition, if it is for the current task
 * @w:		the wrapper
 * @c:		receives the condition
 *
 * Return: true if there is one, and the current address space set it
 */
bool watch_condition(struct watch *w, struct condition *c)
{
	spin_lock_bh(&w->lock);
	*c = w->condition;
	spin_unlock_bh(&w->lock);
	return condition_is_mine(c);
}

/**
 * watch_wake() - make whoever waits for a wrapper look at it again
 * @w:		the wrapper
 */
void watch_wake(struct watch *w)
{
	wake_up_all(&w->sk.sk_socket->wq.wait);
}

/*
 * A page that is not there is no reason to fault (condition.c), and none to let the
 * caller sleep on a word that nobody has read: he is told to look, his look brings
 * the page in, and the next one here finds it.
 */
static __poll_t watch_events(struct watch *w, const struct condition *c)
{
	u64 missing;
	int holds = condition_look(c, &missing);

	/* Else a word that holds only now and then would keep epoll spinning for ever. */
	if (READ_ONCE(w->hit) && xchg(&w->hit, false))
		return EPOLLIN;
	if (holds == -EINVAL || (holds == -EFAULT && condition_memory_gone(missing)))
		return EPOLLERR;
	return holds ? EPOLLIN : 0;
}

/* May the poll() or select() that asks go on spinning for this wrapper? */
static bool watch_spins(struct watch *w, const struct condition *c, const poll_table *wait)
{
	u64 now;

	if (spinner_gives_way())
		return false;
	if (!c->info.max_us)
		return true;
	now = ktime_get_ns() / NSEC_PER_USEC;
	/* The first look of a call, and only that, queues the caller. */
	if (!poll_does_not_wait(wait))
		WRITE_ONCE(w->start_us, now);
	return now - READ_ONCE(w->start_us) < c->info.max_us;
}

static __poll_t watch_poll(struct file *file, struct socket *sock, poll_table *wait)
{
	struct watch *w = watch_of(sock);
	__poll_t asked = poll_requested_events(wait), events;
	struct condition c;

	/*
	 * Queue first, then look: who stores and then signals finds us queued, or
	 * has stored before we look.
	 */
	poll_wait(file, &sock->wq.wait, wait);
	events = vfs_poll(w->eventfd, wait);

	if (asked == (__force __poll_t)~0 || !watch_condition(w, &c))
		return events;
	WRITE_ONCE(w->unasked, !(asked & EPOLLIN));
	events |= watch_events(w, &c);
	if (asked & POLL_BUSY_LOOP && watch_spins(w, &c, wait))
		events |= POLL_BUSY_LOOP;
	return events;
}

static int watch_set(struct watch *w, const struct eventfd_poll_info __user *uinfo)
{
	struct condition c;
	int error = condition_get(&c, uinfo);

	if (error)
		return error;
	spin_lock_bh(&w->lock);
	swap(w->condition, c);
	spin_unlock_bh(&w->lock);
	WRITE_ONCE(w->hit, false);
	condition_put(&c);
	/* Who sleeps has looked at the old condition, or at none. */
	watch_wake(w);
	return 0;
}

static int watch_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	if (cmd != EVENTFD_SET_POLL)
		return -ENOTTY;
	return watch_set(watch_of(sock), (void __user *)arg);
}

#ifdef CONFIG_COMPAT
static int watch_compat_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	return watch_ioctl(sock, cmd, (unsigned long)compat_ptr(arg));
}
#endif

/* Addresses are shown to nobody but those who share them. */
static void watch_show_fdinfo(struct seq_file *m, struct socket *sock)
{
	struct condition c;

	if (watch_condition(watch_of(sock), &c))
		seq_printf(m, "eventfd-poll: op: %u addr: %llx size: %u val: %llx mask: %llx flags: %x max_us: %u arm_addr: %llx arm_val: %llx\n",
			   c.info.op, c.info.addr, c.info.size, c.info.val, c.info.mask,
			   c.info.flags, c.info.max_us, c.info.arm_addr, c.info.arm_val);
}

/* The file's last close: nobody polls any more. Drops the reference to the module, too, which watch_new() took. */
static int watch_release(struct socket *sock)
{
	struct watch *w;

	/* accept(2) makes a socket with our operations before sock_no_accept() refuses it. */
	if (!sock->sk)
		return 0;
	w = watch_of(sock);
	spinner_del(w);
	if (w->eventfd)
		fput(w->eventfd);
	condition_put(&w->condition);
	sock_orphan(&w->sk);
	sock->sk = NULL;
	sock_put(&w->sk);
	return 0;
}

static struct proto watch_proto = {
	.name		= "EVENTFD_POLL",
	.owner		= THIS_MODULE,
	.obj_size	= sizeof(struct watch),
};

static const struct proto_ops watch_ops = {
	.family		= PF_UNSPEC,
	.owner		= THIS_MODULE,
	.release	= watch_release,
	.poll		= watch_poll,
	.ioctl		= watch_ioctl,
#ifdef CONFIG_COMPAT
	.compat_ioctl	= watch_compat_ioctl,
#endif
	.show_fdinfo	= watch_show_fdinfo,
	.bind		= sock_no_bind,
	.connect	= sock_no_connect,
	.socketpair	= sock_no_socketpair,
	.accept		= sock_no_accept,
	.getname	= sock_no_getname,
	.listen		= sock_no_listen,
	.shutdown	= sock_no_shutdown,
	.sendmsg	= sock_no_sendmsg,
	.recvmsg	= sock_no_recvmsg,
	.mmap		= sock_no_mmap,
	.sendpage	= sock_no_sendpage,
};

/* A socket of ours, without an eventfd. NULL: no memory, or the module is being unloaded. */
static struct socket *watch_socket(void)
{
	struct socket *sock = sock_alloc();
	struct watch *w;
	struct sock *sk;

	if (!sock)
		return NULL;
	sock->type = SOCK_RAW;
	sk = sk_alloc(current->nsproxy->net_ns, AF_UNSPEC, GFP_KERNEL_ACCOUNT, &watch_proto, 0);
	if (!sk) {
		sock_release(sock);
		return NULL;
	}
	sock_init_data(sock, sk);
	/* Else sock_poll() would spin for us, without giving way. */
	sk->sk_ll_usec = 0;
	w = watch_of(sock);
	spin_lock_init(&w->lock);
	/* Whose reference sock_release() drops; we are called through the device, so there is another. */
	__module_get(THIS_MODULE);
	sock->ops = &watch_ops;
	return sock;
}

/**
 * watch_new() - make a wrapper (EVENTFD_POLL_WRAP)
 * @s:		the spinner of the device that was asked
 * @eventfd:	a descriptor
 *
 * Return: the wrapper's descriptor; -EBADF; -EINVAL when it is no eventfd;
 * -ENOSPC when there are too many; -EMFILE; -ENFILE; -ENOMEM
 */
int watch_new(struct spinner *s, int eventfd)
{
	struct eventfd_ctx *ctx;
	struct socket *sock;
	struct file *file;
	struct watch *w;
	int fd, error;

	sock = watch_socket();
	if (!sock)
		return -ENOMEM;
	w = watch_of(sock);
	error = -EBADF;
	w->eventfd = fget(eventfd);
	if (!w->eventfd)
		goto release;
	/* The file is enough, it holds the context; only an eventfd has one. */
	ctx = eventfd_ctx_fileget(w->eventfd);
	error = PTR_ERR_OR_ZERO(ctx);
	if (error)
		goto release;
	eventfd_ctx_put(ctx);
	error = spinner_add(s, w);
	if (error)
		goto release;

	fd = get_unused_fd_flags(O_CLOEXEC);
	error = fd;
	if (fd < 0)
		goto release;
	/* Releases the socket when it fails. */
	file = sock_alloc_file(sock, 0, NULL);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	fd_install(fd, file);
	return fd;

release:
	sock_release(sock);
	return error;
}
