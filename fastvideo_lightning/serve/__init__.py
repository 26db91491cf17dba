"""The web page: a bounded queue of jobs, one model that makes them, and a Gradio page in front.

Read `jobs`, `limits` and `studio`, which know nothing of the web; `page`, `view`, `middleware` and
`server` are the web and need the extra `serve`.
"""
