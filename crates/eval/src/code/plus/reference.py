import os


def reference(request):
    """Runs the canonical solution on both halves: `I` the inputs, then for each `O` seconds and output, or `E` and why not."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    write = results.write
    for half in ("base_input", "plus_input"):
        inputs = [arguments(request["task"], one) for one in request[half]]
        write(line("I", ["l", *[encode(list(one)) for one in inputs]]))
        names = {}
        exec(request["solution"], names)
        solve = names[request["entry_point"]]
        for one in inputs:
            one = copy.deepcopy(one)
            try:
                start = time.perf_counter()
                value = solve(*one)
                seconds = time.perf_counter() - start
                told = line("O", [seconds, encode(shaped(value, request["shape"]))])
            except Exception as error:
                told = line("E", f"{type(error).__name__}: {error}"[:200])
            write(told)
    results.close()


reference(json.load(sys.stdin))
