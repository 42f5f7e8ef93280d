"""Commands that send requests: test, submit, batches, replay, and the HTTP client that they share.

Others use `client`. Does not know how the service is started.
"""
