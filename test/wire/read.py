"""Reads bodies as a server in Python would: one in hex a line in, every model that it names a line out."""
import json
import sys

sys.set_int_max_str_digits(0)


def names(v):
    """The strings in v, which is one, or a list, or objects with a model."""
    if isinstance(v, str):
        return [v]
    if isinstance(v, list):
        return [n for each in v for n in names(each)]
    if isinstance(v, dict):
        return [n for key in ("model", "models", "fallbacks") for n in names(v.get(key))]
    return [] if v is None else ["a " + type(v).__name__]


for line in sys.stdin:
    try:
        body = json.loads(bytes.fromhex(line))
        if not isinstance(body, dict):
            raise ValueError("not an object")
        found = {"model": names(body.get("model")), "stream": repr(body.get("stream"))}
        found["others"] = [n for key in ("models", "fallbacks", "tools", "plugins", "router") for n in names(body.get(key))]
    except (ValueError, RecursionError) as e:
        found = {"error": str(e)[:100]}
    print(json.dumps(found), flush=True)
