//! Whether two trees say the same.

use std::collections::BTreeSet;

use num_complex::Complex64;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::Rule;
use super::expression::{Expr, REAL_POINTS};

/// Longer lists are equal only in the same order.
const MAX_UNORDERED: usize = 100;
/// Where variables have random values, so many places must agree.
const POINTS: usize = 16;
/// What is written with a point is equal to six places: Math-Verify's `float_rounding`.
const PLACES: f64 = 5e-7;

/// The rule by which the answer says what the gold answer says; None where it does not.
pub(super) fn same(gold: &Expr, answer: &Expr) -> Option<Rule> {
    compare(&both_signs(gold), &both_signs(answer), 0)
}

/// What has `±` in it is two answers.
fn both_signs(expr: &Expr) -> Expr {
    let has_signs = |expr: &Expr| expr.any(&|part| matches!(part, Expr::PlusMinus(_)));
    if !has_signs(expr) {
        return expr.clone();
    }
    let items = match expr {
        Expr::List(items) => items.as_slice(),
        other => std::slice::from_ref(other),
    };
    let signed = |item: &Expr| {
        if has_signs(item) { vec![item.with_sign(true), item.with_sign(false)] } else { vec![item.clone()] }
    };
    Expr::List(items.iter().flat_map(signed).collect())
}

fn compare(gold: &Expr, answer: &Expr, depth: usize) -> Option<Rule> {
    if depth > 50 {
        return None;
    }
    let deeper = |gold: &Expr, answer: &Expr| compare(gold, answer, depth + 1);
    match (gold, answer) {
        (Expr::Degree(gold), answer) => deeper(gold, answer),
        (gold, Expr::Degree(answer)) => deeper(gold, answer),
        (Expr::Relation { .. }, Expr::Relation { .. }) => relations(gold, answer, depth),
        (Expr::Relation { .. }, _) => {
            let bare = assigned(gold).or_else(|| interval(gold))?;
            deeper(&bare, answer)
        }
        // The gold answer is bare: of an equation the last side counts, or the one that a lone variable is not.
        (_, Expr::Relation { sides, signs }) => {
            let bare = match sides.as_slice() {
                [value, Expr::Symbol(_)] if signs == &['='] && !matches!(gold, Expr::Symbol(_)) => {
                    value.clone()
                }
                _ if signs.iter().all(|sign| *sign == '=') => sides.last()?.clone(),
                _ => assigned(answer).or_else(|| interval(answer))?,
            };
            deeper(gold, &bare)
        }
        (Expr::List(golds), Expr::List(answers)) => unordered(golds, answers, depth).then_some(Rule::List),
        (Expr::Union(golds), Expr::Union(answers) | Expr::List(answers))
        | (Expr::List(golds), Expr::Union(answers)) => {
            unordered(golds, answers, depth).then_some(Rule::Interval)
        }
        (
            Expr::Tuple { open, close, items: golds },
            Expr::Tuple { open: answer_open, close: answer_close, items: answers },
        ) => {
            let same_brackets = (open, close) == (answer_open, answer_close);
            (same_brackets && ordered(golds, answers, depth)).then_some(Rule::Tuple)
        }
        // Brackets left out, or put around a list.
        (Expr::Tuple { open: '(', close: ')', items: golds }, Expr::List(answers)) => {
            ordered(golds, answers, depth).then_some(Rule::Tuple)
        }
        (Expr::List(golds), Expr::Tuple { open: '(', close: ')', items: answers }) => {
            unordered(golds, answers, depth).then_some(Rule::List)
        }
        // A set of one is that one.
        (Expr::List(items), other) if items.len() == 1 => deeper(&items[0], other),
        (other, Expr::List(items)) if items.len() == 1 => deeper(other, &items[0]),
        (Expr::Matrix(golds), Expr::Matrix(answers)) => {
            let same_rows = |(gold, answer): (&Vec<Expr>, &Vec<Expr>)| ordered(gold, answer, depth);
            (golds.len() == answers.len() && golds.iter().zip(answers).all(same_rows)).then_some(Rule::Matrix)
        }
        (Expr::Words(gold), Expr::Words(answer)) => {
            gold.to_lowercase().eq(&answer.to_lowercase()).then_some(Rule::Text)
        }
        (Expr::Based { digits, base }, Expr::Based { digits: answer_digits, base: answer_base }) => {
            (digits == answer_digits && base == answer_base).then_some(Rule::Number)
        }
        // All reals, as a letter or as an interval.
        (Expr::Symbol(name), Expr::Tuple { .. }) if name == "R" => deeper(&all_reals(), answer),
        (Expr::Tuple { .. }, Expr::Symbol(name)) if name == "R" => deeper(gold, &all_reals()),
        _ => scalars(gold, answer),
    }
}

fn ordered(golds: &[Expr], answers: &[Expr], depth: usize) -> bool {
    golds.len() == answers.len()
        && golds.iter().zip(answers).all(|(gold, answer)| compare(gold, answer, depth + 1).is_some())
}

fn unordered(golds: &[Expr], answers: &[Expr], depth: usize) -> bool {
    if golds.len().max(answers.len()) > MAX_UNORDERED {
        return ordered(golds, answers, depth);
    }
    // As sets: an item said twice is said.
    let is_same = |gold: &Expr, answer: &Expr| compare(gold, answer, depth + 1).is_some();
    let in_answers = golds.iter().all(|gold| answers.iter().any(|answer| is_same(gold, answer)));
    in_answers && answers.iter().all(|answer| golds.iter().any(|gold| is_same(gold, answer)))
}

/// The value of `x = 5`, `f(x) = 5`, `x = y = 5`, `(x, y) = (1, 2)`; the set of `x ∈ …`.
fn assigned(relation: &Expr) -> Option<Expr> {
    let Expr::Relation { sides, signs } = relation else { return None };
    let is_one = |wanted: char| signs.iter().all(|sign| *sign == wanted);
    let named = is_name(sides.first()?) && is_one('=') || signs.as_slice() == ['∈'];
    named.then(|| sides.last().cloned()).flatten()
}

/// A variable, a product of them (`AB`, `f(x)`), or a tuple.
fn is_name(side: &Expr) -> bool {
    match side {
        Expr::Symbol(_) => true,
        Expr::Product(parts) => {
            parts.iter().all(|part| is_name(part) || matches!(part, Expr::Power(inner, _) if is_name(inner)))
        }
        Expr::Tuple { items, .. } | Expr::Call("abs", items) => items.iter().all(is_name),
        _ => false,
    }
}

fn all_reals() -> Expr {
    Expr::Tuple { open: '(', close: ')', items: vec![Expr::Infinity.negated(), Expr::Infinity] }
}

fn flipped(sign: char) -> char {
    match sign {
        '<' => '>',
        '>' => '<',
        '≤' => '≥',
        '≥' => '≤',
        other => other,
    }
}

/// The same relation with its sides the other way round.
fn reversed(sides: &[Expr], signs: &[char]) -> (Vec<Expr>, Vec<char>) {
    (sides.iter().rev().cloned().collect(), signs.iter().rev().copied().map(flipped).collect())
}

/// The interval of `x < 5` or `1 ≤ x < 5`, the set of `x ∈ …`.
fn interval(relation: &Expr) -> Option<Expr> {
    let Expr::Relation { sides, signs } = relation else { return None };
    if signs.as_slice() == ['∈'] {
        return sides.last().cloned();
    }
    let rises = signs.iter().any(|sign| ['<', '≤'].contains(sign));
    let (sides, signs) = if rises { (sides.clone(), signs.clone()) } else { reversed(sides, signs) };
    if !signs.iter().all(|sign| ['<', '≤'].contains(sign)) {
        return None;
    }
    let open = |sign: char| if sign == '<' { '(' } else { '[' };
    let close = |sign: char| if sign == '<' { ')' } else { ']' };
    let is_value = |side: &Expr| symbols(side).is_empty();
    let (open, close, low, high) = match (sides.as_slice(), signs.as_slice()) {
        ([name, high], [sign]) if is_name(name) && is_value(high) => {
            ('(', close(*sign), Expr::Infinity.negated(), high.clone())
        }
        ([low, name], [sign]) if is_name(name) && is_value(low) => {
            (open(*sign), ')', low.clone(), Expr::Infinity)
        }
        ([low, name, high], [first, second]) if is_name(name) && is_value(low) && is_value(high) => {
            (open(*first), close(*second), low.clone(), high.clone())
        }
        _ => return None,
    };
    Some(Expr::Tuple { open, close, items: vec![low, high] })
}

fn symbols(expr: &Expr) -> BTreeSet<&str> {
    let mut symbols = BTreeSet::new();
    expr.symbols(&mut symbols);
    symbols
}

fn relations(gold: &Expr, answer: &Expr, depth: usize) -> Option<Rule> {
    let (Expr::Relation { sides, signs }, Expr::Relation { sides: answer_sides, signs: answer_signs }) =
        (gold, answer)
    else {
        return None;
    };
    // A chain of equations says its first and its last side.
    let ends = |sides: &[Expr], signs: &[char]| match sides {
        [first, .., last] if signs.len() > 1 && signs.iter().all(|sign| *sign == '=') => {
            (vec![first.clone(), last.clone()], vec!['='])
        }
        _ => (sides.to_vec(), signs.to_vec()),
    };
    let (sides, signs) = ends(sides, signs);
    let (answer_sides, answer_signs) = ends(answer_sides, answer_signs);
    let pairwise = |answer_sides: &[Expr], answer_signs: &[char]| {
        signs == answer_signs
            && (ordered(&sides, answer_sides, depth)
                || (0..signs.len()).all(|at| {
                    let gold = difference(&sides[at], &sides[at + 1]);
                    let answer = difference(&answer_sides[at], &answer_sides[at + 1]);
                    proportional(&gold, &answer, ['=', '≠'].contains(&signs[at]))
                }))
    };
    let (back_sides, back_signs) = reversed(&answer_sides, &answer_signs);
    if pairwise(&answer_sides, &answer_signs) || pairwise(&back_sides, &back_signs) {
        return Some(Rule::Relation);
    }
    let intervals = compare(&interval(gold)?, &interval(answer)?, depth + 1);
    let same_names = symbols(gold) == symbols(answer);
    intervals.filter(|_| same_names).map(|_| Rule::Interval)
}

fn difference(left: &Expr, right: &Expr) -> Expr {
    Expr::Sum(vec![left.clone(), right.clone().negated()])
}

/// One is a constant times the other, which may be negative where `signed`.
fn proportional(a: &Expr, b: &Expr, signed: bool) -> bool {
    if let Some(ratios) =
        (0..3).map(|point| Some((a.exact(point)?, b.exact(point)?))).collect::<Option<Vec<_>>>()
    {
        let ratio = |(a, b): &(BigRational, BigRational)| (!a.is_zero() && !b.is_zero()).then(|| a / b);
        let Some(first) = ratio(&ratios[0]) else { return false };
        return (signed || first.is_positive())
            && ratios[1..].iter().all(|pair| ratio(pair).as_ref() == Some(&first));
    }
    let mut ratios = Vec::new();
    for point in 0..POINTS {
        if let (Some(a), Some(b)) = (a.value(point), b.value(point)) {
            if a.norm() < 1e-12 || b.norm() < 1e-12 {
                return false;
            }
            ratios.push(a / b);
        }
    }
    let Some(first) = ratios.first().copied().filter(|_| ratios.len() > 2) else { return false };
    let is_constant = ratios.iter().all(|ratio| (ratio - first).norm() <= 1e-8 * first.norm());
    is_constant && first.im.abs() <= 1e-8 * first.norm() && (signed || first.re > 0.0)
}

fn scalars(gold: &Expr, answer: &Expr) -> Option<Rule> {
    if let (Some(gold), Some(answer)) = (infinite(gold), infinite(answer)) {
        return (gold == answer).then_some(Rule::Number);
    }
    // A per cent sign that one side leaves out: "what percentage" asks for 20, and 20 % is also 0.2.
    match (gold, answer) {
        (Expr::Percent(gold), Expr::Percent(answer)) => values(gold, answer),
        (Expr::Percent(inner), other) | (other, Expr::Percent(inner)) => {
            values(inner, other).or_else(|| values(&Expr::Percent(inner.clone()), other))
        }
        _ => values(gold, answer),
    }
}

fn infinite(expr: &Expr) -> Option<bool> {
    match expr {
        Expr::Infinity => Some(true),
        Expr::Product(parts) => match parts.as_slice() {
            [Expr::Number { value, .. }, Expr::Infinity] => Some(value.is_positive()),
            _ => None,
        },
        _ => None,
    }
}

/// Numbers exactly, or rounded where a side has a point; expressions with variables where they have random values.
fn values(gold: &Expr, answer: &Expr) -> Option<Rule> {
    let is_rounded = gold.is_decimal() || answer.is_decimal();
    let has_symbols = !symbols(gold).is_empty() || !symbols(answer).is_empty();
    if !has_symbols {
        if let (Some(gold), Some(answer)) = (gold.exact(0), answer.exact(0)) {
            return (gold == answer || is_rounded && rounded(&gold, &answer)).then_some(Rule::Number);
        }
        let (gold, answer) = (gold.value(0)?, answer.value(0)?);
        return (close(gold, answer) || is_rounded && nearly(gold, answer)).then_some(Rule::Number);
    }
    let points: Option<Vec<_>> =
        (0..4).map(|point| Some((gold.exact(point)?, answer.exact(point)?))).collect();
    if let Some(points) = points {
        let is_same = |(gold, answer): &(BigRational, BigRational)| {
            gold == answer || is_rounded && rounded(gold, answer)
        };
        return points.iter().all(is_same).then_some(Rule::Expression);
    }
    let mut agreed = 0;
    for point in 0..POINTS {
        let (Some(gold), Some(answer)) = (gold.value(point), answer.value(point)) else { continue };
        let is_real = |z: Complex64| z.im.abs() <= 1e-12 * z.norm();
        // Where a function of reals has no real value it may be continued in several ways.
        if point < REAL_POINTS && !(is_real(gold) && is_real(answer)) || point >= REAL_POINTS && agreed > 2 {
            continue;
        }
        if !(close(gold, answer) || is_rounded && nearly(gold, answer)) {
            return None;
        }
        agreed += 1;
    }
    (agreed > 2).then_some(Rule::Expression)
}

/// Six places, and not only because both are small.
fn rounded(a: &BigRational, b: &BigRational) -> bool {
    let apart = (a - b).abs();
    let larger = a.abs().max(b.abs());
    let small = BigRational::new(One::one(), 1000.into());
    apart.to_f64().is_some_and(|apart| apart <= PLACES) && apart <= larger * small
}

fn nearly(a: Complex64, b: Complex64) -> bool {
    let apart = (a - b).norm();
    apart <= PLACES && apart <= 1e-3 * a.norm().max(b.norm())
}

/// The error of some tens of operations.
fn close(a: Complex64, b: Complex64) -> bool {
    (a - b).norm() <= 1e-12 * a.norm().max(b.norm()) + 1e-13
}
