import os
import signal
import sys
import time


def candidate(request, write=os.write, leave=os._exit, timer=signal.setitimer, clock=time.perf_counter):
    """Runs a solution on inputs until the first that it does not survive; writes the lines that the reference does."""

    class TimedOut(Exception):
        pass

    def late(*_):
        raise TimedOut("timed out")

    results = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    signal.signal(signal.SIGALRM, late)

    def tell(data):
        rest = memoryview(data)
        while rest:
            rest = rest[write(results, rest):]

    try:
        names = {}
        exec(request["solution"], names)
        solve = names[request["entry_point"]]
        for one, limit in zip(request["inputs"][1:], request["limits"]):
            one = decode(one)
            start = clock()
            timer(signal.ITIMER_REAL, limit)
            try:
                value = solve(*one)
            finally:
                timer(signal.ITIMER_REAL, 0)
            seconds = clock() - start
            tell(line("O", [seconds, encode(shaped(value, request["shape"]))]))
    except BaseException as error:
        tell(line("E", f"{type(error).__name__}: {error}"[:200]))
    leave(0)


candidate(json.load(sys.stdin))
