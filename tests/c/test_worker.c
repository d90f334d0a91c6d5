/* SPDX-License-Identifier: Apache-2.0 */
/* test_worker.c - a worker thread: queues come and go under load, nothing is lost, idleness costs nothing */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "backend/c/worker.h"
#include "disk.h"
#include "kernel/c/atomics.h"
#include "strategies.h"

static struct blk_dev *dev;
static struct blk_lane *lane;
static struct worker *worker;
static pthread_t thread;

static void *run(void *arg)
{
	CHECK_EQ(worker_run(arg), 0);
	return NULL;
}

static void prepare(const char *path, const char *engine, int strategy)
{
	dev = disk_make(path);
	CHECK_EQ(blk_lane_create(&lane, dev, engine, 256), 0);
	CHECK_EQ(worker_create(&worker, strategy, 50), 0);
	CHECK_EQ(worker_add_lane(worker, blk_lane_base(lane)), 0);
}

static void run_worker(void)
{
	CHECK_EQ(pthread_create(&thread, NULL, run, worker), 0);
}

static void start_on(const char *path, const char *engine, int strategy)
{
	prepare(path, engine, strategy);
	run_worker();
}

static void start(const char *engine, int strategy)
{
	start_on(NULL, engine, strategy);
}

static void stop(void)
{
	CHECK_EQ(worker_stop(worker), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	worker_destroy(worker);
	blk_lane_destroy(lane);
	disk_free(dev);
}

/* Wait, as the steering thread does, until the worker announced the state. */
static void await_queue(const struct queue *q, enum queue_state state)
{
	struct pollfd event = { .fd = worker_event_fd(worker), .events = POLLIN };
	uint64_t count;

	while (queue_state(q) != (int)state) {
		CHECK(poll(&event, 1, 10000) == 1);
		CHECK(read(event.fd, &count, 8) == 8);
	}
}

static void await_state(const struct client *c, enum queue_state state)
{
	await_queue(blk_queue_base(c->queue), state);
}

struct guest {
	struct client c;
	int kick, call;
};

static void guest_make(struct guest *g, uint16_t index, uint64_t features)
{
	g->kick = eventfd(0, EFD_NONBLOCK);
	g->call = eventfd(0, EFD_NONBLOCK);
	client_make(&g->c, dev, index, 64, features, g->kick, g->call);
}

static void guest_start(struct guest *g, uint16_t index, uint64_t features)
{
	guest_make(g, index, features);
	CHECK_EQ(worker_start_queue(worker, blk_lane_base(lane), blk_queue_base(g->c.queue), g->kick), 0);
	await_state(&g->c, QUEUE_RUNNING);
}

static void guest_stop(struct guest *g)
{
	CHECK_EQ(worker_stop_queue(worker, blk_queue_base(g->c.queue)), 0);
	await_state(&g->c, QUEUE_STOPPED);
	CHECK_EQ(queue_in_flight(blk_queue_base(g->c.queue)), 0);
}

static void guest_free(struct guest *g)
{
	client_free(&g->c);
	close(g->kick);
	close(g->call);
}

/* One request, asleep until the device calls: the way of a guest's kernel. */
static void ask_asleep(struct guest *g)
{
	struct pollfd call = { .fd = g->call, .events = POLLIN };
	struct driver_used used;
	uint64_t count;

	client_add(&g->c, 0, VIRTIO_BLK_T_IN, 0, 0, 4096);
	CHECK(driver_publish(g->c.driver) >= 0);
	while (driver_poll_used(g->c.driver, &used, 1) == 0) {
		if (driver_interrupts_on(g->c.driver))
			continue;
		CHECK(poll(&call, 1, 10000) == 1); /* a lost call would end here */
		CHECK(read(g->call, &count, 8) == 8);
	}
	CHECK_EQ(*client_status(&g->c, 0), VIRTIO_BLK_S_OK);
}

static const uint64_t rings[] = {
	0,
	1ull << VIRTIO_RING_F_EVENT_IDX,
	1ull << VIRTIO_F_RING_PACKED,
	1ull << VIRTIO_F_RING_PACKED | 1ull << VIRTIO_RING_F_EVENT_IDX,
};

static void neither_kick_nor_call_is_lost_on_any_ring(int strategy)
{
	for (unsigned r = 0; r < 4; r++) {
		struct guest g;

		start("null", strategy);
		guest_start(&g, 0, rings[r]);
		for (unsigned i = 0; i < repeated(5000); i++)
			ask_asleep(&g);
		guest_stop(&g);
		guest_free(&g);
		stop();
	}
}

/* Both engines on a file: their completions have to end a sleep, however they tell of them. */
static void no_completion_is_lost(int strategy)
{
	static const char *const engines[] = { "aio", "io_uring" };
	char path[] = "/var/tmp/kpoll-test-XXXXXX";

	close(mkstemp(path));
	for (unsigned i = 0; i < 2; i++) {
		struct io_wait waits[IO_WAITS_MAX];
		struct pollfd signal = { .events = POLLIN };
		struct guest g;

		start_on(path, engines[i], strategy);
		CHECK(io_waits(blk_lane_engine(lane), waits) > 0);
		signal.fd = waits[0].fd;
		guest_start(&g, 0, rings[1]);
		for (unsigned n = 0; n < repeated(500); n++)
			ask_asleep(&g);
		guest_stop(&g);
		/* Who is woken by the AIO ring itself wants no signals (RESFD) beside that. */
		if (strategy == WAIT_KERNEL && i == 0)
			CHECK_EQ(poll(&signal, 1, 0), 0);
		guest_free(&g);
		stop();
	}
	unlink(path);
}

/* A successor that only reacts to kicks must be kicked: the doorbell is left on. */
static void a_stopped_queue_leaves_the_doorbell_on(void)
{
	struct driver_layout at;
	struct guest g;

	start("null", WAIT_USER);
	CHECK_EQ(driver_lay_out(&at, 64, 0, 16), 0);
	guest_start(&g, 0, rings[0]);
	ask_asleep(&g);
	guest_stop(&g);
	CHECK_EQ(((struct vring_used *)(g.c.memory + at.used))->flags, 0);
	guest_free(&g);

	CHECK_EQ(driver_lay_out(&at, 64, rings[2], 16), 0);
	guest_start(&g, 0, rings[2]);
	ask_asleep(&g);
	guest_stop(&g);
	CHECK_EQ(((struct vring_packed_desc_event *)(g.c.memory + at.used))->flags, VRING_PACKED_EVENT_FLAG_ENABLE);
	guest_free(&g);
	stop();
}

/* Where a guest's rings are, as client_make() has laid them out. */
static struct virtq_config rings_of(const struct guest *g, uint64_t features)
{
	struct driver_layout at;

	CHECK_EQ(driver_lay_out(&at, 64, features, 16), 0);
	return (struct virtq_config){
		.size = 64,
		.features = features,
		.desc_uva = DISK_UVA + at.desc,
		.avail_uva = DISK_UVA + at.avail,
		.used_uva = DISK_UVA + at.used,
		.call_fd = g->call,
		.err_fd = -1,
	};
}

static void a_stopped_queue_goes_on_where_it_was(void)
{
	struct guest g;
	struct virtq_config cfg;

	start("null", WAIT_USER);
	guest_start(&g, 0, rings[3]);
	cfg = rings_of(&g, rings[3]);
	for (int i = 0; i < 200; i++) {
		ask_asleep(&g);
		guest_stop(&g);
		cfg.base = virtq_base(&blk_queue_base(g.c.queue)->vq);
		CHECK_EQ(blk_queue_bind(g.c.queue, &cfg, g.c.table), 0);
		CHECK_EQ(worker_start_queue(worker, blk_lane_base(lane), blk_queue_base(g.c.queue), g.kick), 0);
		await_state(&g.c, QUEUE_RUNNING);
	}
	guest_stop(&g);
	guest_free(&g);
	stop();
}

static void a_broken_queue_is_announced_and_the_others_go_on(void)
{
	struct driver_buf bad = { DRIVER_MEMORY, 16 };
	struct guest broken, good;

	start("null", WAIT_OFF);
	guest_start(&broken, 0, 0);
	guest_start(&good, 1, 0);
	CHECK_EQ(driver_add(broken.c.driver, &bad, 1, 0, 0), 0);
	CHECK(driver_publish(broken.c.driver) >= 0);
	await_state(&broken.c, QUEUE_BROKEN);
	for (int i = 0; i < 100; i++)
		ask_asleep(&good);
	guest_stop(&broken);
	guest_stop(&good);
	guest_free(&broken);
	guest_free(&good);
	stop();
}

static void a_queue_without_a_kick_descriptor_is_polled(void)
{
	struct guest g;
	struct driver_used used;

	start("null", WAIT_OFF);
	g.kick = -1;
	g.call = eventfd(0, EFD_NONBLOCK);
	client_make(&g.c, dev, 0, 64, 0, -1, g.call);
	CHECK_EQ(worker_start_queue(worker, blk_lane_base(lane), blk_queue_base(g.c.queue), -1), 0);
	await_state(&g.c, QUEUE_RUNNING);
	client_add(&g.c, 0, VIRTIO_BLK_T_IN, 0, 0, 512);
	driver_publish(g.c.driver);
	while (driver_poll_used(g.c.driver, &used, 1) == 0)
		cpu_relax();
	guest_stop(&g);
	guest_free(&g);
	stop();
}

static void a_kick_descriptor_that_cannot_be_watched_breaks_the_queue(void)
{
	FILE *file = tmpfile();
	struct guest g = { .call = -1 };

	start("null", WAIT_OFF);
	g.kick = dup(fileno(file));
	client_make(&g.c, dev, 0, 64, 0, -1, -1);
	CHECK_EQ(worker_start_queue(worker, blk_lane_base(lane), blk_queue_base(g.c.queue), g.kick), 0);
	await_state(&g.c, QUEUE_BROKEN);
	guest_stop(&g);
	guest_free(&g);
	fclose(file);
	stop();
}

static void stopping_what_never_started_is_answered(void)
{
	struct client c;

	start("null", WAIT_OFF);
	client_make(&c, dev, 0, 64, 0, -1, -1);
	queue_set_state(blk_queue_base(c.queue), QUEUE_BROKEN);
	CHECK_EQ(worker_stop_queue(worker, blk_queue_base(c.queue)), 0);
	await_state(&c, QUEUE_STOPPED);
	client_free(&c);
	stop();
}

static void leaving_finishes_what_is_in_flight(int strategy)
{
	struct guest g;
	struct driver_used used;
	int came_back = 0;

	start("null", strategy);
	guest_start(&g, 0, 0);
	for (unsigned i = 0; i < 16; i++)
		client_add(&g.c, i, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
	driver_publish(g.c.driver);
	while (load_relaxed(&blk_queue_stats(g.c.queue)->requests[BLK_FLUSH]) == 0)
		cpu_relax();
	stop(); /* with the queue running */
	CHECK_EQ(queue_state(blk_queue_base(g.c.queue)), QUEUE_STOPPED);
	CHECK_EQ(queue_in_flight(blk_queue_base(g.c.queue)), 0);
	while (driver_poll_used(g.c.driver, &used, 1) == 1)
		came_back++;
	/* All that was popped was answered; what was not popped is still in the ring for a successor. */
	CHECK_EQ(came_back, (int)virtq_base(&blk_queue_base(g.c.queue)->vq));
	guest_free(&g);
}

static void idle_costs_nothing(int strategy)
{
	struct worker_stats before, after;
	struct guest g;

	start("null", strategy);
	guest_start(&g, 0, rings[1]);
	ask_asleep(&g);
	do { /* it has gone to sleep once its CPU clock stands still */
		worker_stats(worker, &before);
		poll(NULL, 0, 50);
		worker_stats(worker, &after);
	} while (after.cpu_ns != before.cpu_ns);
	poll(NULL, 0, 500); /* the measurement itself, not a wait for something to happen */
	worker_stats(worker, &after);
	CHECK_EQ(after.cpu_ns, before.cpu_ns);
	CHECK_EQ(after.wait.sleeps, before.wait.sleeps);
	guest_stop(&g);
	guest_free(&g);
	stop();
}

/* The kernel can't read such a word, or write such an arm word: it is for us to find out what happened. */
static void memory_that_goes_breaks_its_queue_alone(int strategy)
{
	struct guest gone, good;
	uint64_t one = 1;

	CHECK_EQ(mem_sigbus_install(), 0);
	start("null", strategy);
	guest_start(&gone, 0, 0);
	guest_start(&good, 1, 0);
	ask_asleep(&gone);
	CHECK_EQ(ftruncate(gone.c.fd, 0), 0);
	CHECK(write(gone.kick, &one, 8) == 8);
	await_state(&gone.c, QUEUE_BROKEN);
	for (int i = 0; i < 100; i++)
		ask_asleep(&good);
	guest_stop(&gone);
	guest_stop(&good);
	guest_free(&gone);
	guest_free(&good);
	stop();
}

static void a_queue_whose_memory_went_before_it_started_says_so(int strategy)
{
	struct guest g;
	uint64_t one = 1;

	CHECK_EQ(mem_sigbus_install(), 0);
	start("null", strategy);
	guest_make(&g, 0, 0);
	CHECK_EQ(ftruncate(g.c.fd, 0), 0);
	CHECK_EQ(worker_start_queue(worker, blk_lane_base(lane), blk_queue_base(g.c.queue), g.kick), 0);
	CHECK(write(g.kick, &one, 8) == 8);
	await_state(&g.c, QUEUE_BROKEN);
	CHECK_EQ(blk_queue_base(g.c.queue)->vq.fault, VIRTQ_FAULT_MEMORY_GONE);
	guest_stop(&g);
	guest_free(&g);
	stop();
}

/* A device that is no disk: what it takes it keeps until its bell is rung, which alone wakes it for that. */
struct keeper {
	struct lane lane;
	struct queue queue;
	struct virtq_chain kept;
	int bell;
	int refuse;        /* what join() answers, once the bell has been added */
	uint32_t released; /* atomic */
};

static unsigned keeper_poll(struct lane *lane)
{
	struct keeper *k = container_of(lane, struct keeper, lane);
	struct iovec iov[4];
	uint64_t rung;

	lane_check_memory(lane);
	if (queue_in_flight(&k->queue) > 0) {
		if (read(k->bell, &rung, 8) != 8)
			return 0;
		virtq_push(&k->queue.vq, &k->kept, 0);
		store_relaxed(&k->queue.in_flight, 0); /* before the driver can see it and send another */
		virtq_publish(&k->queue.vq);
		return 1;
	}
	if (k->queue.state != QUEUE_RUNNING || virtq_pop(&k->queue.vq, &k->kept, iov, 4) <= 0)
		return 0;
	store_relaxed(&k->queue.in_flight, 1);
	return 1;
}

static int keeper_join(struct lane *lane, struct wait_set *ws)
{
	struct keeper *k = container_of(lane, struct keeper, lane);
	int rc = wait_set_add(ws, k->bell, NULL, lane, NULL);

	return rc < 0 ? rc : k->refuse;
}

static void keeper_release(struct lane *lane, struct queue *q)
{
	CHECK(lane->ops->release == keeper_release);
	CHECK_EQ(queue_in_flight(q), 0);
	count_add(&container_of(q, struct keeper, queue)->released, 1);
}

static void join_again(struct keeper *k, int refuse)
{
	uint32_t before = load_acquire(&k->lane.joined);

	k->refuse = refuse;
	CHECK_EQ(worker_join_lane(worker, &k->lane), 0);
	while (load_acquire(&k->lane.joined) == before)
		cpu_relax();
	CHECK_EQ(k->lane.join_error, refuse);
}

/* Its bell isn't in the wait set then, and what completes would wake nobody. */
static void a_device_that_could_not_join_again_is_looked_at_all_the_same(struct keeper *k, struct guest *other)
{
	struct pollfd call = { .fd = other->call, .events = POLLIN };
	struct worker_stats stats;
	struct driver_used used;
	uint64_t one = 1, before;

	join_again(k, -ENOMEM);
	client_add(&other->c, 0, VIRTIO_BLK_T_IN, 0, 0, 512);
	CHECK(driver_publish(other->c.driver) >= 0);
	CHECK(write(other->kick, &one, 8) == 8);
	while (queue_in_flight(&k->queue) == 0)
		cpu_relax();
	worker_stats(worker, &stats);
	for (before = stats.wait.sleeps; stats.wait.sleeps == before; worker_stats(worker, &stats))
		cpu_relax();
	CHECK(write(k->bell, &one, 8) == 8);
	CHECK(poll(&call, 1, 10000) == 1);
	CHECK(read(other->call, &one, 8) == 8);
	CHECK_EQ(driver_poll_used(other->c.driver, &used, 1), 1);
	join_again(k, 0);
}

static void a_device_that_is_no_disk_is_served_beside_one(int strategy)
{
	static const struct lane_ops ops = { .poll = keeper_poll, .join = keeper_join, .release = keeper_release };
	struct keeper k = { .bell = eventfd(0, EFD_NONBLOCK), .refuse = -EIO };
	struct virtq_config cfg;
	struct guest disk, other;
	uint64_t one = 1;

	lane_init(&k.lane, &ops);
	prepare(NULL, "null", strategy);
	CHECK_EQ(worker_add_lane(worker, &k.lane), -EIO);
	k.refuse = 0;
	CHECK_EQ(worker_add_lane(worker, &k.lane), 0); /* -EEXIST, were the bell still in the wait set */
	run_worker();
	guest_start(&disk, 0, rings[1]);

	guest_make(&other, 0, 0);
	cfg = rings_of(&other, 0);
	CHECK_EQ(queue_bind(&k.queue, &cfg, other.c.table), 0);
	CHECK_EQ(worker_start_queue(worker, &k.lane, &k.queue, other.kick), 0);
	await_queue(&k.queue, QUEUE_RUNNING);
	for (unsigned i = 0; i < repeated(200); i++) {
		struct pollfd call = { .fd = other.call, .events = POLLIN };
		struct driver_used used;
		uint64_t count;

		client_add(&other.c, 0, VIRTIO_BLK_T_IN, 0, 0, 512);
		CHECK(driver_publish(other.c.driver) >= 0);
		while (queue_in_flight(&k.queue) == 0)
			cpu_relax();
		ask_asleep(&disk);
		CHECK_EQ(driver_poll_used(other.c.driver, &used, 1), 0); /* kept */
		CHECK(write(k.bell, &one, 8) == 8);
		CHECK(poll(&call, 1, 10000) == 1);
		CHECK(read(other.call, &count, 8) == 8);
		CHECK_EQ(driver_poll_used(other.c.driver, &used, 1), 1);
	}

	a_device_that_could_not_join_again_is_looked_at_all_the_same(&k, &other);

	/* Stopped with a chain in flight, it is the worker's until the chain is back. */
	client_add(&other.c, 0, VIRTIO_BLK_T_IN, 0, 0, 512);
	CHECK(driver_publish(other.c.driver) >= 0);
	while (queue_in_flight(&k.queue) == 0)
		cpu_relax();
	CHECK_EQ(worker_stop_queue(worker, &k.queue), 0);
	while (queue_state(&k.queue) != QUEUE_STOPPING)
		cpu_relax();
	ask_asleep(&disk);
	CHECK_EQ(queue_state(&k.queue), QUEUE_STOPPING);
	CHECK_EQ(load_relaxed(&k.released), 0);
	CHECK(write(k.bell, &one, 8) == 8);
	await_queue(&k.queue, QUEUE_STOPPED);
	CHECK_EQ(load_relaxed(&k.released), 1);
	CHECK_EQ(virtq_base(&k.queue.vq), repeated(200) + 2);

	guest_stop(&disk);
	stop();
	guest_free(&disk);
	guest_free(&other);
	close(k.bell);
}

int main(void)
{
	alarm(240);
	EACH(neither_kick_nor_call_is_lost_on_any_ring);
	EACH(no_completion_is_lost);
	RUN(a_stopped_queue_leaves_the_doorbell_on);
	RUN(a_stopped_queue_goes_on_where_it_was);
	RUN(a_broken_queue_is_announced_and_the_others_go_on);
	RUN(a_queue_without_a_kick_descriptor_is_polled);
	RUN(a_kick_descriptor_that_cannot_be_watched_breaks_the_queue);
	RUN(stopping_what_never_started_is_answered);
	EACH(leaving_finishes_what_is_in_flight);
	EACH(idle_costs_nothing);
	EACH(memory_that_goes_breaks_its_queue_alone);
	EACH(a_queue_whose_memory_went_before_it_started_says_so);
	EACH(a_device_that_is_no_disk_is_served_beside_one);
	return 0;
}
