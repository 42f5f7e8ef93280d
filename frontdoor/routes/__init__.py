"""One module a group of routes: it reads the body, calls `accepting` and `answering`, and words the answer.

A route knows the shape of its API and nothing of files, other routes or the ring. The app includes the
routers.
"""
