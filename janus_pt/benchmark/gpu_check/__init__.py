"""What whoever has a GPU first wants to know: is it right there, and how fast is it. Ten minutes.

`table.py` lists the checks. Each runs in processes of its own (`processes.py`), so that one that
fails, hangs or crashes stops no other.
"""
