//! The code in an answer: what EvalPlus's `sanitize` keeps of it.
//!
//! First the longest run of lines that is a Python program, then of that the imports and what the entry point reaches.
//! Source: evalplus 0.3.1, `evalplus/sanitize.py`. There, CPython says what a program is; here tree-sitter's grammar does, with the
//! rules that the grammar leaves out ([`is_program`]).

use std::collections::{HashMap, HashSet, VecDeque};

use tree_sitter::{Node, Parser, Tree};

/// What may be parsed in search of a program: no answer of ordinary length takes a tenth. Units: bytes.
const BUDGET: usize = 64 << 20;

/// The code in an answer: its imports, and of its functions (that return something), classes and assignments those that
/// `entry_point` needs; where there are none, the longest run of lines that is a program; where there is none, the first line.
pub fn sanitize(text: &str, entry_point: &str) -> String {
    let mut parser = Parser::new();
    if parser.set_language(&tree_sitter_python::LANGUAGE.into()).is_err() {
        return text.to_owned();
    }
    let code = longest_program(&mut parser, text);
    let kept = parser.parse(code, None).map(|tree| reachable(&tree, code, entry_point)).unwrap_or_default();
    let kept = kept.trim();
    if kept.is_empty() { code.to_owned() } else { kept.to_owned() }
}

/// The most lines that are a program, blank ones not counted; of as many, those that begin first. One line alone is none.
fn longest_program<'t>(parser: &mut Parser, text: &'t str) -> &'t str {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut starts = vec![0];
    starts.extend(text.match_indices('\n').map(|(at, _)| at + 1));
    let slice = |first: usize, last: usize| &text[starts[first]..starts[last] + lines[last].len()];
    let filled: Vec<usize> = (0..lines.len()).filter(|&line| !lines[line].trim().is_empty()).collect();

    let mut budget = BUDGET;
    // For each first line, where an error stands that no end behind it repairs: parsers read from left to right.
    let mut hopeless = vec![usize::MAX; filled.len()];
    for count in (1..=filled.len()).rev() {
        for first in 0..=filled.len() - count {
            let (begin, end) = (filled[first], filled[first + count - 1]);
            // Blank lines before it belong to it, those behind only to make two lines of one.
            let begin = if first == 0 { 0 } else { filled[first - 1] + 1 }.min(begin);
            let end = end.max(begin + 1);
            let next = filled.get(first + count).copied().unwrap_or(lines.len());
            let within = &lines[filled[first]..=filled[first + count - 1]];
            // The token that shows the error may stand on the next line.
            let known = count > 1 && starts[filled[first + count - 2]] > hopeless[first];
            if end >= next || known || !can_begin(within) {
                continue;
            }
            let code = slice(begin, end);
            budget = budget.saturating_sub(code.len());
            let Some(tree) = parser.parse(code, None) else { continue };
            if is_program(&tree, code) {
                return code;
            }
            if let Some(at) = first_error(&tree) {
                hopeless[first] = hopeless[first].min(starts[begin] + at);
            }
            if budget == 0 {
                return lines[0];
            }
        }
    }
    lines[0]
}

/// Where the first error of a tree ends: there stands, at the latest, the token that fits nothing before it.
fn first_error(tree: &Tree) -> Option<usize> {
    let mut node = tree.root_node();
    while node.has_error() && !node.is_error() && !node.is_missing() {
        let mut cursor = node.walk();
        node = node.children(&mut cursor).find(Node::has_error)?;
    }
    node.has_error().then(|| node.end_byte())
}

/// The first line of code is not indented.
fn can_begin(lines: &[&str]) -> bool {
    let code = lines.iter().find(|line| !line.trim_start().starts_with('#'));
    code.is_none_or(|line| !line.starts_with([' ', '\t']))
}

/// No names, though the grammar takes them for some where it finds nothing better. Source: Python 3.14, `keyword.kwlist`.
const KEYWORDS: [&str; 35] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def",
    "del", "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is",
    "lambda", "nonlocal", "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
];

/// What CPython would parse, where the grammar alone is too kind: it forgives indentation, empty blocks, most of Python 2, and
/// orders that CPython's grammar forbids.
fn is_program(tree: &Tree, code: &str) -> bool {
    let text = |node: Node<'_>| code.get(node.byte_range()).unwrap_or_default();
    let fine = |node: Node<'_>| match node.kind() {
        "module" => aligned(node, Some(0)),
        "block" => aligned(node, None) && indented(node),
        "argument_list" => in_order(node, &["keyword_argument", "dictionary_splat"], |kind| {
            !matches!(kind, "keyword_argument" | "dictionary_splat" | "list_splat")
        }),
        "parameters" | "lambda_parameters" => {
            in_order(node, &["default_parameter", "typed_default_parameter"], |kind| kind == "identifier")
        }
        "concatenated_string" => {
            let is_bytes = |string: &Node<'_>| {
                text(*string).split(['"', '\'']).next().is_some_and(|prefix| prefix.contains(['b', 'B']))
            };
            let strings = statements(node);
            strings.iter().all(is_bytes) || !strings.iter().any(is_bytes)
        }
        "integer" => is_integer(text(node)),
        "identifier" => !KEYWORDS.contains(&text(node)),
        "try_statement" => ["except_clause", "except_group_clause", "finally_clause"]
            .iter()
            .any(|kind| has_child(node, kind)),
        // Python 2.
        "print_statement" | "exec_statement" | "<>" => false,
        "except_clause" => !has_child(node, ","),
        "raise_statement" => !has_child(node, "expression_list"),
        _ => true,
    };
    !tree.root_node().has_error() && !code.contains('\0') && nodes(tree.root_node()).all(fine)
}

/// None that is `late` follows one of the kinds `first`; what follows a bare `*` or `*args` is named and free.
fn in_order(list: Node<'_>, first: &[&str], late: impl Fn(&str) -> bool) -> bool {
    let items = statements(list);
    let free = |node: &Node<'_>| matches!(node.kind(), "keyword_separator" | "list_splat_pattern");
    let kinds = items.iter().take_while(|node| !free(node)).map(Node::kind);
    !kinds.skip_while(|kind| !first.contains(kind)).any(late)
}

fn has_child(node: Node<'_>, kind: &str) -> bool {
    let mut cursor = node.walk();
    node.children(&mut cursor).any(|child| child.kind() == kind)
}

/// Neither `012` nor `12L`.
fn is_integer(text: &str) -> bool {
    let decimal = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let zero = text.bytes().all(|byte| matches!(byte, b'0' | b'_'));
    let octal = decimal && text.starts_with('0') && !zero;
    !octal && !text.ends_with(['l', 'L'])
}

/// Every node of a tree, without recursion: an answer may nest as deep as it likes.
fn nodes(root: Node<'_>) -> impl Iterator<Item = Node<'_>> {
    let mut cursor = root.walk();
    let mut next = Some(root);
    std::iter::from_fn(move || {
        let node = next?;
        let mut more = cursor.goto_first_child();
        while !more {
            more = cursor.goto_next_sibling();
            if !more && !cursor.goto_parent() {
                break;
            }
        }
        next = more.then(|| cursor.node());
        Some(node)
    })
}

/// The statements of a block.
fn statements<'t>(block: Node<'t>) -> Vec<Node<'t>> {
    let mut cursor = block.walk();
    block.named_children(&mut cursor).filter(|node| node.kind() != "comment").collect()
}

/// Statements that begin a line begin at one column.
fn aligned(block: Node<'_>, column: Option<usize>) -> bool {
    let statements = statements(block);
    let column = column.or(statements.first().map(|first| first.start_position().column));
    let mut row = None;
    statements.iter().all(|statement| {
        let start = statement.start_position();
        let fine = row == Some(start.row) || Some(start.column) == column;
        row = Some(statement.end_position().row);
        fine
    })
}

/// A block has a statement, on the line of its head or further in than that.
fn indented(block: Node<'_>) -> bool {
    let (Some(first), Some(head)) = (statements(block).first().map(Node::start_position), block.parent())
    else {
        return false;
    };
    first.row == block.prev_sibling().map_or(head.start_position().row, |colon| colon.end_position().row)
        || first.column > head.start_position().column
}

/// Imports, and definitions that the entry point names, or that such ones name.
fn reachable(tree: &Tree, code: &str, entry_point: &str) -> String {
    let text = |node: Node<'_>| code.get(node.byte_range()).unwrap_or_default();
    let name = |node: Node<'_>| {
        let mut cursor = node.walk();
        node.children(&mut cursor).find(|child| child.kind() == "identifier").map(text)
    };
    let mut imports = Vec::new();
    let mut definitions: Vec<(&str, Node<'_>)> = Vec::new();
    for node in statements(tree.root_node()) {
        let definition = match node.kind() {
            "import_statement" | "import_from_statement" => {
                imports.push(text(node));
                continue;
            }
            "class_definition" => node,
            "function_definition" if nodes(node).any(|node| node.kind() == "return_statement") => node,
            "expression_statement" => match node.child(0) {
                Some(assignment) if assignment.kind() == "assignment" => assignment,
                _ => continue,
            },
            _ => continue,
        };
        // Of two with one name, the first counts; what has no name (`a, b = …`) is reached by none.
        if let Some(name) = name(definition)
            && definitions.iter().all(|&(known, _)| known != name)
        {
            definitions.push((name, definition));
        }
    }
    let uses: HashMap<&str, HashSet<&str>> = definitions
        .iter()
        .map(|&(name, node)| {
            (name, nodes(node).filter(|node| node.kind() == "identifier").map(text).collect())
        })
        .collect();
    let mut reached = HashSet::from([entry_point]);
    let mut queue = VecDeque::from([entry_point]);
    while let Some(name) = queue.pop_front() {
        for &used in uses.get(name).into_iter().flatten() {
            if reached.insert(used) {
                queue.push_back(used);
            }
        }
    }
    let definitions =
        definitions.iter().filter(|(name, _)| reached.contains(name)).map(|&(_, node)| text(node));
    imports.into_iter().chain(definitions).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(sanitize(text, "f"), expected);
    }

    #[test]
    fn code_is_found_in_prose() {
        let code = "import math\ndef g(x):\n    return math.sqrt(x)\ndef f(x):\n    return g(x)";
        check(code, code);
        check(&format!("Here is the code:\n```python\n{code}\n```\nIt works by recursion."), code);
        check(&format!("{code}\n\nprint(f(4))\nassert f(4) == 2"), code);
        check("Sorry, I cannot.\nI am only a model.", "Sorry, I cannot.");
        check("", "");
    }

    #[test]
    fn only_what_the_entry_point_reaches_is_kept() {
        check(
            "A = 1\nB = 2\ndef f(x):\n    return A\nclass C:\n    pass\n",
            "A = 1\ndef f(x):\n    return A",
        );
        check("def h():\n    print(1)\ndef f():\n    return h()", "def f():\n    return h()");
        check("@cache\ndef f():\n    return 1\nx, y = 1, 2", "@cache\ndef f():\n    return 1\nx, y = 1, 2");
        check("def f():\n    return 1\ndef f():\n    return 2", "def f():\n    return 1");
    }

    #[test]
    fn what_cpython_refuses_is_no_program() {
        check("def f():\n    return 1\n  x = 2\ny = 3", "def f():\n    return 1");
        check("print 'a'\nx = 1\ny = 2", "x = 1\ny = 2");
        check("x = 1\ny = 2\ndef f():\n    # nothing", "x = 1\ny = 2");
        check("x = 1\ny = 2\n    z = 3", "x = 1\ny = 2");
        for wrong in [
            "f(a=1, 2)",
            "f(**a, *b, c)",
            "def g(a=1, b): pass",
            "t = b'a' 'b'",
            "x = 012",
            "x = 12L",
            "raise A, 'b'",
            "x <> y",
            "try: x\nexcept A, e: y",
            "exec 'x'",
            "f() = 1",
            "lambda a=1, b: 0",
            "if x:",
            "x = (",
            "x = 'a",
        ] {
            check(&format!("x = 1\ny = 2\n{wrong}"), "x = 1\ny = 2");
        }
        for right in [
            "f(*a, 1, b=2, *c, **d)",
            "def g(a, b=1, *c, d, **e): pass",
            "def g(a=1, *, b): pass",
            "t = rb'a' b'b'",
            "x = 0_0 + 0x1f",
            "match x:\n    case [1, *_]: pass",
            "async def g(): await x",
            "def g(a, /, b: int = 1): return a",
            "print(x); exec('y')",
            "x = [\n1,\n]",
            "if x: # why\n    # a comment\n    y",
            "if x:\n  y\nelif z: y\nelse:\n      y",
            "x = '''\n  a\n'''",
        ] {
            // Nothing here is called f, so that all of it is kept.
            let text = format!("pass\n{right}");
            check(&text, &text);
        }
        check("x = 1; y = 2\nif x: y = 3; z = 4", "x = 1; y = 2\nif x: y = 3; z = 4");
    }

    #[test]
    fn depth_and_length_end() {
        let deep = format!("x = {}1{}\ny = 2", "(".repeat(20_000), ")".repeat(20_000));
        assert!(!sanitize(&deep, "f").is_empty());
        let prose = "no program, this\n".repeat(150);
        check(&prose, "no program, this");
    }
}
