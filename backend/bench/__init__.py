"""`kpoll bench`: a front-end and driver in one, that measures any vhost-user back-end from outside."""
