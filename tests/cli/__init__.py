"""The installed `kpoll`, as a user or QEMU starts it."""
