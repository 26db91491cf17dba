"""The web page: a bounded queue of jobs, one model that makes them, and a Gradio page in front.

`jobs`, `limits` and `studio` know nothing of the web; `page`, `view`, `guard` and `server` are the
web and need the extra `serve`.
"""
