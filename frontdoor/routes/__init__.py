"""One module for each group of routes: reads the body, calls `accepting` and `answering`, writes the answer.

A route knows the shape of its API and nothing of files, other routes or the ring. The app includes the
routers.
"""
