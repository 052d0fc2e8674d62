"""Reads what a server in Python would: one body a line in hex, one verdict a line out."""
import json
import sys


def plain(v):
    """v as strict JSON can say it: Python has NaN and lone surrogates."""
    return v if v is None or isinstance(v, (str, bool)) else "a " + type(v).__name__


def whole(v):
    """A whole number as such; True is one in Python and none in JSON."""
    return v if type(v) is int and abs(v) < 1 << 53 else plain(v)


sys.set_int_max_str_digits(0)
for line in sys.stdin:
    try:
        got = json.loads(bytes.fromhex(line))
        if not isinstance(got, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError):
        print("null")
        continue
    options = got.get("stream_options")
    usage = options.get("include_usage") if isinstance(options, dict) else None
    print(json.dumps({
        "model": plain(got.get("model")), "stream": plain(got.get("stream")), "usage": plain(usage),
        "max_tokens": whole(got.get("max_tokens")), "max_completion_tokens": whole(got.get("max_completion_tokens")),
        "max_output_tokens": whole(got.get("max_output_tokens")), "n": whole(got.get("n")),
    }))
