# gunicorn takes its listeners from LISTEN_FDS by itself, so there is no `bind` here.
workers = 2
threads = 4
keepalive = 75

# gunicorn says READY=1 when its master is up. Loaded in the master, the application is up by then,
# and one that does not load fails the reload instead of the service.
preload_app = True

# gunicorn calls listen(2) again and would shorten the queue to 2048.
backlog = 4096

# Less than drain_timeout in heirloom.toml.
graceful_timeout = 20
