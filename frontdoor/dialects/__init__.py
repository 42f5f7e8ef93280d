"""The APIs of other vendors: for each a body, which becomes a draft, and a renderer of the answer.

A chat becomes a `ChatBody` (frontdoor/chat_request.py) and comes back as the parts of a `ChatAnswer`.
These modules know the forms of their API, nothing of routes, the spool or how an answer comes about.
"""
