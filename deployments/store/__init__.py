"""Stored responses: what is asked, the tokens so far, and who writes them. They outlive the client, the ingress and the server."""
