"""HTTP below the routes: hosts, keys, paths, bodies, connections, events, and the one handler of errors.

Knows no route, no model and no ring. Routes use `bodies`, `errors` and `events`; the app puts the rest around
them.
"""
