"""OpenAI's HTTP interface over a loaded program (extra ``serve``: FastAPI, uvicorn, prometheus-client)."""
