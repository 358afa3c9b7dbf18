"""Runs a program to its end. What it prints goes nowhere; the verdict goes to the pipe that stdout was."""
import os
import signal


def main(program, seconds, write=os.write, read=os.read, leave=os._exit, timer=signal.setitimer):
    class TimedOut(Exception):
        pass

    def late(*_):
        raise TimedOut

    verdict, proof = os.dup(1), os.dup(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    signal.signal(signal.SIGALRM, late)
    try:
        timer(signal.ITIMER_REAL, seconds)
        try:
            exec(program, {})
        finally:
            timer(signal.ITIMER_REAL, 0)
    except TimedOut:
        said = b"timed out"
    except BaseException as error:
        said = f"failed: {type(error).__name__}: {error}"[:2000].encode(errors="replace")
    else:
        said = read(proof, 64)
    write(verdict, said)
    leave(0)
