"""Devices written with kpoll.vhost, small enough to learn from."""
