"""HTTP below the routes: hosts, API keys, paths, bodies, connections, events, and the one handler of errors.

Knows no route, no model and no ring. Routes use `bodies`, `errors` and `events`; the app adds the other
layers around the routes.
"""
