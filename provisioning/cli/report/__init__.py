"""``muster report``: what a rollout or run came to, as one page, a table or JSON; one module per purpose."""
