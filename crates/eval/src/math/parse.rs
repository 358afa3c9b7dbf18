//! From tokens to a tree, by recursive descent. What it does not know it does not guess: there is no tree then.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive};

use super::expression::Expr;
use super::token::{Token, tokens};

mod commands;

/// Brackets, exponents and arguments within each other; deeper answers are not read.
const MAX_DEPTH: usize = 40;

/// The tree of an answer; None where it cannot be read.
pub(super) fn parse(text: &str) -> Option<Expr> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, depth: 0, bars: 0 };
    let list = parser.list()?;
    parser.tokens.is_empty().then_some(list)
}

struct Parser<'a> {
    tokens: &'a [Token],
    depth: usize,
    /// Within bars, or where a bar separates: the next one starts nothing.
    bars: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.first()
    }

    fn is(&self, sign: char) -> bool {
        self.peek() == Some(&Token::Sign(sign))
    }

    fn skip(&mut self) {
        self.tokens = self.tokens.get(1..).unwrap_or_default();
    }

    fn eat(&mut self, sign: char) -> bool {
        let found = self.is(sign);
        if found {
            self.skip();
        }
        found
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// `1, 2 and 3`.
    fn list(&mut self) -> Option<Expr> {
        let mut items = self.items()?;
        if items.len() == 1 { items.pop() } else { Some(Expr::List(items)) }
    }

    /// At least one; several commas are one.
    fn items(&mut self) -> Option<Vec<Expr>> {
        let mut items = vec![self.relation()?];
        while self.is(',') {
            while self.eat(',') {}
            items.push(self.relation()?);
        }
        Some(items)
    }

    fn relation(&mut self) -> Option<Expr> {
        let mut sides = vec![self.union()?];
        let mut signs = Vec::new();
        while let Some(&Token::Sign(sign @ ('=' | '<' | '>' | '≤' | '≥' | '≠' | '≈' | '∈'))) = self.peek()
        {
            self.skip();
            // Aligned equations.
            self.eat('&');
            let side = self.union()?;
            // What a value is about is not the value.
            if sign != '≈' || signs.is_empty() {
                signs.push(if sign == '≈' { '=' } else { sign });
                sides.push(side);
            }
        }
        if signs.is_empty() { sides.pop() } else { Some(Expr::Relation { sides, signs }) }
    }

    fn union(&mut self) -> Option<Expr> {
        let mut parts = vec![self.sum()?];
        while self.eat('∪') {
            parts.push(self.sum()?);
        }
        if parts.len() == 1 { parts.pop() } else { Some(Expr::Union(parts)) }
    }

    fn sum(&mut self) -> Option<Expr> {
        let mut terms = Vec::new();
        loop {
            let sign = match self.peek() {
                Some(&Token::Sign(sign @ ('+' | '-' | '±' | '∓'))) => {
                    self.skip();
                    Some(sign)
                }
                _ if terms.is_empty() => None,
                _ => break,
            };
            // `--4` is no number.
            if matches!(self.peek(), Some(Token::Sign('+' | '-' | '±' | '∓'))) {
                return None;
            }
            let term = self.product()?;
            terms.push(match sign {
                Some('-') => term.negated(),
                Some('±') => Expr::PlusMinus(Box::new(term)),
                Some('∓') => Expr::PlusMinus(Box::new(term.negated())),
                _ => term,
            });
        }
        if terms.len() == 1 { terms.pop() } else { add_cells(terms) }
    }

    fn product(&mut self) -> Option<Expr> {
        let is_literal = matches!(self.peek(), Some(Token::Number(_)));
        let mut factors = vec![self.factor()?];
        loop {
            match self.peek() {
                Some(Token::Sign('*')) => {
                    self.skip();
                    factors.push(self.signed_factor()?);
                }
                Some(Token::Sign('/' | ':')) => {
                    self.skip();
                    // 1/2x is a half of x in mathematics written down, and one over 2x for nobody.
                    let divisor = self.signed_factor()?;
                    let mixed = self.mixed_number(&factors, &divisor);
                    match mixed {
                        Some(number) => factors = vec![number],
                        None => factors.push(divisor.inverted()),
                    }
                }
                // A unit behind a quantity, with its exponent.
                Some(Token::Text(_)) => {
                    self.skip();
                    while self.is('^') || self.is('/') || matches!(self.peek(), Some(Token::Text(_))) {
                        if self.eat('^') {
                            self.factor()?;
                        } else {
                            self.skip();
                        }
                    }
                    if self.starts_factor() {
                        return None;
                    }
                }
                _ if self.starts_factor() => {
                    let next = self.peek().cloned();
                    let factor = self.factor()?;
                    let mixed = match (&next, factors.as_slice()) {
                        (Some(Token::Command(name)), [whole]) if name == "frac" && is_literal => {
                            mixed_fraction(whole, &factor)
                        }
                        _ => None,
                    };
                    factors = match (mixed, next) {
                        (Some(number), _) => vec![number],
                        (None, Some(Token::Number(digits))) => self.juxtaposed(factors, factor, &digits)?,
                        _ => {
                            factors.push(factor);
                            factors
                        }
                    };
                }
                _ => break,
            }
        }
        Some(Expr::product(factors))
    }

    /// A number behind something without a sign between: behind a number it is three more digits, or the fraction of `1 1/2`.
    fn juxtaposed(&self, mut factors: Vec<Expr>, number: Expr, digits: &str) -> Option<Vec<Expr>> {
        let Some(Expr::Number { value: before, .. }) = factors.last() else {
            factors.push(number);
            return Some(factors);
        };
        if factors.len() > 1 {
            return None;
        }
        if self.is('/') {
            factors.push(number);
            return Some(factors);
        }
        let Expr::Number { value, decimal } = number else { return None };
        let is_group = digits.split('.').next().is_some_and(|whole| whole.len() == 3);
        let value = before * BigInt::from(1000) + value;
        is_group.then(|| vec![Expr::Number { value, decimal }])
    }

    /// `1 1/2`, where `1 1` stand before the slash.
    fn mixed_number(&self, factors: &[Expr], divisor: &Expr) -> Option<Expr> {
        let [whole, above] = factors else { return None };
        let fraction = Expr::Product(vec![above.clone(), divisor.clone().inverted()]);
        matches!(above, Expr::Number { .. }).then(|| mixed_fraction(whole, &fraction)).flatten()
    }

    fn signed_factor(&mut self) -> Option<Expr> {
        if self.eat('-') { self.factor().map(Expr::negated) } else { self.factor() }
    }

    fn starts_factor(&self) -> bool {
        match self.peek() {
            Some(Token::Number(_) | Token::Name(_) | Token::SetOpen | Token::Begin(_)) => true,
            Some(Token::Command(name)) => !["cap", "setminus", "to"].contains(&name.as_str()),
            Some(Token::Sign('(' | '[' | '{' | '∞')) => true,
            Some(Token::Sign('|')) => self.bars == 0,
            _ => false,
        }
    }

    fn factor(&mut self) -> Option<Expr> {
        self.deeper(|parser| {
            let base = parser.base()?;
            parser.postfix(base)
        })
    }

    /// Exponents, factorials, per cent, degrees.
    fn postfix(&mut self, mut base: Expr) -> Option<Expr> {
        for _ in 0..8 {
            if self.eat('^') {
                base = match self.exponent()? {
                    None => Expr::Degree(Box::new(base)),
                    Some(exponent) => Expr::Power(Box::new(base), Box::new(exponent)),
                };
            } else if self.eat('!') {
                base = Expr::Call("!", vec![base]);
            } else if self.eat('%') {
                base = Expr::Percent(Box::new(base));
            } else if self.eat('°') {
                base = Expr::Degree(Box::new(base));
            } else {
                return Some(base);
            }
        }
        None
    }

    /// None for the ring of degrees.
    fn exponent(&mut self) -> Option<Option<Expr>> {
        if self.eat('°') {
            return Some(None);
        }
        if self.tokens.starts_with(&[Token::Sign('{'), Token::Sign('°'), Token::Sign('}')]) {
            self.tokens = &self.tokens[3..];
            return Some(None);
        }
        self.deeper(|parser| {
            let is_negative = parser.eat('-');
            // `2^10` has all digits in its exponent in plain text; in LaTeX the braces say so.
            let exponent = parser.base()?;
            let exponent = if parser.eat('^') {
                Expr::Power(Box::new(exponent), Box::new(parser.exponent()??))
            } else {
                exponent
            };
            Some(Some(if is_negative { exponent.negated() } else { exponent }))
        })
    }

    fn base(&mut self) -> Option<Expr> {
        let token = self.peek()?.clone();
        self.skip();
        match token {
            Token::Number(digits) => self.number(&digits),
            Token::Name(name) => self.name(name),
            Token::Command(name) => self.command(&name),
            Token::Sign('∞') => Some(Expr::Infinity),
            Token::Sign('(') => self.bracket('(', &[')', ']']),
            Token::Sign('[') => self.bracket('[', &[']', ')']),
            Token::Sign('{') => self.bracket('{', &['}']),
            Token::Sign('|') => {
                self.bars += 1;
                let inner = self.deeper(Self::sum);
                self.bars -= 1;
                let inner = inner?;
                self.eat('|').then(|| Expr::Call("abs", vec![inner]))
            }
            Token::SetOpen => self.set(),
            Token::Begin(environment) => self.environment(&environment),
            Token::Text(words) => {
                // "about 5", "Area = 5", or nothing but words.
                if self.starts_factor() {
                    return self.factor();
                }
                let mut all = words;
                while let Some(Token::Text(more)) = self.peek() {
                    all = format!("{all} {more}");
                    self.skip();
                }
                Some(if self.is('=') { Expr::Symbol(all) } else { Expr::Words(all) })
            }
            _ => None,
        }
    }

    fn number(&mut self, digits: &str) -> Option<Expr> {
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let scale = |places: usize| Pow::pow(BigInt::from(10), places);
        let all: BigInt = format!("0{whole}{part}").parse().ok()?;
        let mut value = BigRational::new(all, scale(part.len()));
        if self.peek() == Some(&Token::Command("overline".into())) && digits.contains('.') {
            self.skip();
            self.eat('{').then_some(())?;
            let Some(Token::Number(period)) = self.peek().cloned() else { return None };
            self.skip();
            self.eat('}').then_some(())?;
            let repeated = BigRational::new(period.parse().ok()?, scale(period.len()) - BigInt::one());
            value += repeated / scale(part.len());
            return Some(Expr::Number { value, decimal: false });
        }
        if self.is('_') && !digits.contains('.') {
            self.skip();
            let base = match self.base()? {
                Expr::Number { value, .. } => value.to_u32()?,
                Expr::Words(word) => {
                    const NAMES: [&str; 9] =
                        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
                    NAMES.iter().position(|name| *name == word).map(|at| at as u32 + 2)?
                }
                _ => return None,
            };
            let digits = digits.trim_start_matches('0').to_owned();
            return Some(Expr::Based { digits, base });
        }
        Some(Expr::Number { value, decimal: digits.contains('.') })
    }

    fn name(&mut self, name: String) -> Option<Expr> {
        if self.eat('_') {
            let is_braced = self.eat('{');
            let mut subscript = String::new();
            loop {
                match self.peek() {
                    Some(Token::Number(part) | Token::Name(part) | Token::Text(part)) => {
                        subscript.push_str(part)
                    }
                    Some(Token::Sign(sign @ (',' | '+' | '-'))) if is_braced => subscript.push(*sign),
                    _ => break,
                }
                self.skip();
                if !is_braced {
                    break;
                }
            }
            let closed = !is_braced || self.eat('}');
            return (closed && !subscript.is_empty()).then(|| Expr::Symbol(format!("{name}_{subscript}")));
        }
        Some(match name.as_str() {
            "pi" => Expr::Pi,
            "e" => Expr::Euler,
            "i" => Expr::Imaginary,
            _ => Expr::Symbol(name),
        })
    }

    /// Behind an opening bracket: one thing in round brackets is that thing.
    fn bracket(&mut self, open: char, closing: &[char]) -> Option<Expr> {
        let bars = std::mem::take(&mut self.bars);
        let items = self.deeper(Self::items);
        self.bars = bars;
        let mut items = items?;
        let close = closing.iter().copied().find(|close| self.is(*close))?;
        self.skip();
        match items.len() {
            1 => items.pop(),
            _ if open == '{' => Some(Expr::List(items)),
            _ => Some(Expr::Tuple { open, close, items }),
        }
    }
}

/// `1\frac{1}{2}`: a natural number before a fraction of two.
fn mixed_fraction(whole: &Expr, fraction: &Expr) -> Option<Expr> {
    let is_natural =
        |part: &Expr| matches!(part, Expr::Number { value, .. } if value.is_integer() && value.is_positive());
    match fraction {
        Expr::Degree(inner) => {
            return mixed_fraction(whole, inner).map(|number| Expr::Degree(Box::new(number)));
        }
        Expr::Percent(inner) => {
            return mixed_fraction(whole, inner).map(|number| Expr::Percent(Box::new(number)));
        }
        _ => {}
    }
    let Expr::Product(parts) = fraction else { return None };
    let [above, Expr::Power(below, _)] = parts.as_slice() else { return None };
    if !is_natural(whole) || !is_natural(above) || !is_natural(below) {
        return None;
    }
    let value = whole.exact(0)? + fraction.exact(0)?;
    Some(Expr::Number { value, decimal: false })
}

/// A sum; of matrices of one form or tuples of one length, cell by cell.
fn add_cells(terms: Vec<Expr>) -> Option<Expr> {
    let mut cells: Vec<Vec<Vec<Expr>>> = Vec::new();
    for term in &terms {
        match term {
            Expr::Matrix(rows) => cells.push(rows.clone()),
            _ => return Some(Expr::Sum(terms)),
        }
    }
    let first = cells.first()?;
    let form = |rows: &Vec<Vec<Expr>>| rows.iter().map(Vec::len).collect::<Vec<_>>();
    if cells.iter().any(|rows| form(rows) != form(first)) {
        return None;
    }
    let cell =
        |row: usize, column: usize| Expr::Sum(cells.iter().map(|rows| rows[row][column].clone()).collect());
    let rows = first
        .iter()
        .enumerate()
        .map(|(row, cells)| (0..cells.len()).map(|column| cell(row, column)).collect());
    Some(Expr::Matrix(rows.collect()))
}
