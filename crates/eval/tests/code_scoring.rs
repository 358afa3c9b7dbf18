//! HumanEval, MBPP and EvalPlus, scored in the sandbox.
//!
//! The goldens are EvalPlus 0.3.1's own results, in `shared/eval/data/golden_evalplus`. By default a sample of the tasks is run;
//! all of them: `cargo test -p kanana-eval --test code_scoring -- --ignored --test-threads 1` (half an hour on two slow cores).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use kanana_eval::Source;
use kanana_eval::code::plus::{Dataset, Options, PlusStatus, PlusVerdict, Problem, Suite};
use kanana_eval::code::{Verdict, check_program, human_eval_program, mbpp_program};
use kanana_eval::sandbox::Sandbox;
use serde_json::Value;

fn sandbox() -> Option<&'static Sandbox> {
    static SANDBOX: OnceLock<Option<Sandbox>> = OnceLock::new();
    let built = || Sandbox::builder().launcher(env!("CARGO_BIN_EXE_kanana-sandbox")).build();
    SANDBOX.get_or_init(|| built().inspect_err(|error| println!("skipped: {error}")).ok()).as_ref()
}

fn data() -> Option<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/eval/data");
    if !data.exists() {
        println!("skipped: no shared data");
    }
    data.exists().then_some(data)
}

#[track_caller]
fn check(program: &str, expected: Verdict) {
    let Some(sandbox) = sandbox() else { return };
    let checked = check_program(sandbox, program, Duration::from_secs(2)).unwrap();
    assert_eq!(checked.verdict, expected, "{checked:?}\n{program}");
}

#[test]
fn a_program_passes_by_coming_to_its_end() {
    check("def f(x):\n    return x + 1\nassert f(1) == 2", Verdict::Passed);
    check("print('much' * 100000)\nimport sys; print('more', file=sys.stderr)", Verdict::Passed);
    check("def f(x):\n    return x\nassert f(1) == 2", Verdict::Failed);
    check("def f(", Verdict::Failed);
    check("input()", Verdict::Failed);
    check("x = '가\\u2028\\0\"'", Verdict::Passed);
    check("while True: pass", Verdict::TimedOut);
    check("import time\ntry: time.sleep(60)\nexcept BaseException: time.sleep(60)", Verdict::TimedOut);
    check("if __name__ == '__main__': assert False", Verdict::Passed);
    check(
        &human_eval_program("def f(x):\n", "    return x\n", "def check(c):\n    assert c(1) == 1\n", "f"),
        Verdict::Passed,
    );
    check(
        &mbpp_program("def f(x):\r\n    return x", &["assert f(1) == 1", "assert f(2) == 1"]),
        Verdict::Failed,
    );
}

/// Every one ends before the assert, or talks as if it had passed.
#[test]
fn a_program_does_not_pass_otherwise() {
    for early in [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "print('passed'); import os; os._exit(0)",
        "import os\nfor fd in range(10):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL); import sys; sys.exit()",
        "import os, sys\nos.write = os._exit = lambda *_: 0\nsys.exit(0)",
        "import builtins\nbuiltins.AssertionError = type('Fine', (Exception,), {})",
        "import builtins\nbuiltins.exec = lambda *_: None\nimport sys; sys.settrace(lambda *_: None)",
        "import atexit, os; atexit.register(os._exit, 0)",
        "import inspect\nknown = [str(frame.frame.f_locals) for frame in inspect.stack()]\nimport os\nos.write(1, ''.join(known).encode()); os._exit(0)",
        "import threading, os\nthreading.Timer(0.1, os._exit, [0]).start()\nwhile True: pass",
    ] {
        check(&format!("{early}\nassert False"), Verdict::Failed);
    }
    check("import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True: pass", Verdict::TimedOut);
}

fn problem(entry_point: &str, solution: &str, base: &str, plus: &str) -> Problem {
    Problem {
        task_id: "Test/1".into(),
        prompt: String::new(),
        entry_point: entry_point.into(),
        canonical_solution: solution.into(),
        atol: 0.0,
        base_input: base.into(),
        plus_input: plus.into(),
    }
}

#[track_caller]
fn plus(problem: &Problem, dataset: Dataset, solution: &str, base: PlusStatus, plus: PlusStatus) {
    let Some(sandbox) = sandbox() else { return };
    let suite = Suite::new(dataset, vec![problem.clone()]);
    let options = Options { min_time_limit: 1.0, half_time_limit: 2.0, ..Options::default() };
    let verdict = suite.evaluate(sandbox, problem, solution, &options).unwrap();
    assert_eq!(
        (verdict.base.status, verdict.plus.as_ref().unwrap().status),
        (base, plus),
        "{verdict:?}\n{solution}"
    );
}

#[test]
fn values_are_compared_outside() {
    use PlusStatus::{Fail, Pass, Timeout};
    let half = problem("f", "def f(x):\n    print(x)\n    return x / 2", "[[1], [3.0]]", "[[NaN], [1e300]]");
    let check = |solution, base, more| plus(&half, Dataset::HumanEval, solution, base, more);
    check("def f(x): return x * 0.5", Pass, Fail);
    let half =
        problem("f", "def f(x):\n    print(x)\n    return x / 2", "[[1], [3.0]]", "[[Infinity], [1e300]]");
    let check = |solution, base, more| plus(&half, Dataset::HumanEval, solution, base, more);
    check("def f(x): return x * 0.5", Pass, Pass);
    check("def f(x): return x * 0.50000001", Pass, Pass);
    check("def f(x): return x * 0.501", Fail, Fail);
    check("from fractions import Fraction\ndef f(x): return Fraction(x) / 2", Pass, Fail);
    check(
        "class Yes:\n    __eq__ = lambda *_: True\n    __class__ = float\ndef f(x): return Yes()",
        Fail,
        Fail,
    );
    check(
        "class Yes(float):\n    __eq__ = lambda *_: True\n    __add__ = lambda *_: 0.5\ndef f(x): return Yes(7)",
        Fail,
        Fail,
    );
    check("class Half(float): pass\ndef f(x): return Half(x / 2)", Pass, Pass);
    check("import sys\ndef f(x): sys.exit(0)", Fail, Fail);
    check("import os\ndef f(x): os._exit(0)", Fail, Fail);
    check("def f(x): return 1 / 0", Fail, Fail);
    check("def g(x): return x / 2", Fail, Fail);
    check("def f(x) return x", Fail, Fail);
    check(
        "count = 0\ndef f(x):\n    global count\n    count += 1\n    assert count < 2\n    return x / 2",
        Fail,
        Fail,
    );
    check("def f(x):\n    while True: pass", Fail, Fail);
    check(
        "import time\ndef f(x):\n    while True:\n        try: time.sleep(60)\n        except Exception: pass",
        Timeout,
        Timeout,
    );
    check(
        "import os\ndef f(x):\n    for fd in range(9):\n        try: os.write(fd, b'O[0,1]\\n')\n        except OSError: pass\n    return x",
        Fail,
        Fail,
    );
}

#[test]
fn containers_come_back_as_they_are() {
    use PlusStatus::{Fail, Pass};
    let solution = "def f(n):
    return [(n, str(n)), {n, n + 1}, frozenset([n]), {n: None, 'k': b'x'}, 2 ** (100 * n), complex(n, 1), '\\ud800', True, -n, []]";
    let all = problem("f", solution, "[[1], [70]]", "[]");
    plus(&all, Dataset::HumanEval, solution, Pass, Pass);
    plus(&all, Dataset::HumanEval, &solution.replace("-n, []", "-n, ()"), Fail, Pass);
    plus(&all, Dataset::HumanEval, &solution.replace("2 ** (100 * n)", "2 ** (100 * n) + 1"), Fail, Pass);
    plus(
        &all,
        Dataset::HumanEval,
        &solution.replace("{n, n + 1}", "{n + 1: 0, n: 0}.keys() | {n}"),
        Pass,
        Pass,
    );
    let big = problem(
        "f",
        "def f(n): return n",
        "[[123456789012345678901234567890]]",
        "[[[\"\\ud83d\\ude00\", null, true]]]",
    );
    plus(&big, Dataset::HumanEval, "def f(n): return n if isinstance(n, list) else int(str(n))", Pass, Pass);
    let any = problem(
        "check_str",
        "import re\ndef check_str(s): return re.match('a', s)",
        "[[\"abc\"]]",
        "[[\"xyz\"]]",
    );
    plus(&any, Dataset::Mbpp, "def check_str(s): return s.startswith('a')", Pass, Pass);
    plus(&any, Dataset::Mbpp, "def check_str(s): return 0 if s == 'abc' else None", Pass, Pass);
    let set = problem("Diff", "def Diff(a, b): return list(set(a) ^ set(b))", "[[[1, 2], [2, 3]]]", "[]");
    plus(&set, Dataset::Mbpp, "def Diff(a, b): return (x for x in (3, 1, 3))", Pass, Pass);
    plus(&set, Dataset::Mbpp, "def Diff(a, b): return [1]", Fail, Pass);
    plus(&set, Dataset::Mbpp, "def Diff(a, b): return 4", Fail, Pass);
}

/// The verdicts that EvalPlus recorded, by task.
fn golden(data: &Path, name: &str) -> HashMap<String, (String, PlusStatus, PlusStatus)> {
    let text = fs::read_to_string(data.join(format!("golden_evalplus/{name}_eval_results.json"))).unwrap();
    let results: Value = serde_json::from_str(&text).unwrap();
    let status = |value: &Value| serde_json::from_value::<PlusStatus>(value.clone()).unwrap();
    let one = |(task, results): (&String, &Value)| {
        let result = &results[0];
        let solution = result["solution"].as_str().unwrap().to_owned();
        (task.clone(), (solution, status(&result["base_status"]), status(&result["plus_status"])))
    };
    results["eval"].as_object().unwrap().iter().map(one).collect()
}

/// Runs every `step`th golden solution on two threads; the tasks whose verdicts differ, with both.
fn differences(dataset: Dataset, name: &str, step: usize, options: &Options) -> Vec<String> {
    let (Some(sandbox), Some(data)) = (sandbox(), data()) else { return Vec::new() };
    let suite = Suite::load(&Source::new(&data), name, dataset).unwrap();
    let cache = std::env::var_os("KANANA_EVALPLUS_CACHE");
    let suite = if let Some(folder) = cache { suite.cached_in(folder) } else { suite };
    let golden = golden(&data, name);
    let problems: Vec<&Problem> = suite.problems().iter().step_by(step).collect();
    let (next, found, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&problem) = problems.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (solution, base, plus) = &golden[&problem.task_id];
                    let got = suite.evaluate(sandbox, problem, solution, options);
                    let task = &problem.task_id;
                    let same = |got: &PlusVerdict| {
                        got.base.status == *base && got.plus.as_ref().unwrap().status == *plus
                    };
                    if !got.as_ref().is_ok_and(same) {
                        println!("{task}: expected {base:?} {plus:?}, got {got:?}");
                        found.lock().unwrap().push(task.clone());
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort();
    println!("{name}: {} of {} as recorded", problems.len() - found.len(), done.into_inner());
    found
}

/// As the goldens were made, but for the limit of a half: a busy machine must not decide.
fn golden_options() -> Options {
    Options {
        min_time_limit: 8.0,
        time_limit_factor: 20.0,
        half_time_limit: 300.0,
        find_zero_fails: true,
        ..Options::default()
    }
}

#[test]
fn a_sample_of_the_goldens_is_met() {
    let none = Vec::<String>::new();
    assert_eq!(differences(Dataset::HumanEval, "humaneval_canonical", 55, &golden_options()), none);
    assert_eq!(differences(Dataset::HumanEval, "humaneval_samples", 41, &golden_options()), none);
    assert_eq!(differences(Dataset::Mbpp, "mbpp_canonical", 95, &golden_options()), none);
}

#[test]
#[ignore = "half an hour"]
fn the_goldens_of_humaneval_are_met() {
    let none = Vec::<String>::new();
    assert_eq!(differences(Dataset::HumanEval, "humaneval_canonical", 1, &golden_options()), none);
    assert_eq!(differences(Dataset::HumanEval, "humaneval_samples", 1, &golden_options()), none);
    let repaired = Options { find_zero_fails: false, ..golden_options() };
    // Index 32 of the samples, a canonical one.
    assert_eq!(differences(Dataset::HumanEval, "humaneval_canonical", 32, &repaired), ["HumanEval/32"]);
}

#[test]
#[ignore = "half an hour"]
fn the_goldens_of_mbpp_are_met() {
    let found = differences(Dataset::Mbpp, "mbpp_canonical", 1, &golden_options());
    // Recorded as a timeout of 60 s, which it needs on a slow machine; Mbpp/255 fails here as there, by its memory.
    assert!(found.iter().all(|task| task == "Mbpp/392"), "{found:?}");
}
