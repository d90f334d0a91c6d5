"""A vhost-user library: wire messages, sessions, guest memory and virtqueues. Knows nothing of disks or packets."""
