//! What LaTeX has a command for: fractions, roots, functions, sets, matrices.

use super::super::expression::{Expr, small_integer};
use super::super::token::{FUNCTIONS, Token};
use super::Parser;

impl Parser<'_> {
    /// Behind `\{`: elements, or `x | condition`.
    pub(super) fn set(&mut self) -> Option<Expr> {
        if self.peek() == Some(&Token::SetClose) {
            self.skip();
            return Some(Expr::Symbol("∅".into()));
        }
        self.bars += 1;
        let items = self.deeper(Self::items);
        let condition = if self.eat('|') { self.deeper(Self::items) } else { None };
        self.bars -= 1;
        let mut items = condition.or(items)?;
        let closed = self.peek() == Some(&Token::SetClose);
        self.skip();
        let is_relation = matches!(items.as_slice(), [Expr::Relation { .. }]);
        closed.then(|| if is_relation { items.pop() } else { Some(Expr::List(items)) }).flatten()
    }

    pub(super) fn environment(&mut self, name: &str) -> Option<Expr> {
        let rows = self.deeper(|parser| {
            let mut rows = vec![Vec::new()];
            loop {
                match parser.peek()? {
                    Token::End => break,
                    Token::Row => {
                        parser.skip();
                        rows.push(Vec::new());
                    }
                    _ => {
                        let cell = parser.relation()?;
                        rows.last_mut()?.push(cell);
                        let ends = matches!(parser.peek(), Some(Token::Row | Token::End));
                        if !parser.eat('&') && !ends {
                            return None;
                        }
                    }
                }
            }
            parser.skip();
            rows.retain(|row| !row.is_empty());
            Some(rows)
        })?;
        match name {
            "pmatrix" | "bmatrix" | "matrix" | "Bmatrix" | "smallmatrix" | "array" => {
                Some(Expr::Matrix(rows))
            }
            _ => None,
        }
    }

    pub(super) fn command(&mut self, name: &str) -> Option<Expr> {
        match name {
            "frac" => {
                let above = self.argument()?;
                let below = self.argument()?;
                Some(Expr::Product(vec![above, below.inverted()]))
            }
            "binom" => {
                let arguments = vec![self.argument()?, self.argument()?];
                Some(Expr::Call("binom", arguments))
            }
            "sqrt" => {
                let degree = if self.eat('[') {
                    let degree = self.deeper(Self::sum)?;
                    self.eat(']').then_some(degree)?
                } else {
                    Expr::integer(2)
                };
                let inner = self.argument()?;
                match degree.exact(0).as_ref().and_then(small_integer) {
                    Some(degree @ 2..=64) => Some(Expr::Root(Box::new(inner), degree as u32)),
                    _ => Some(Expr::Power(Box::new(inner), Box::new(degree.inverted()))),
                }
            }
            "lfloor" | "lceil" => {
                let inner = self.deeper(Self::sum)?;
                let (function, close) =
                    if name == "lfloor" { ("floor", "rfloor") } else { ("ceil", "rceil") };
                let closed = self.peek() == Some(&Token::Command(close.into()));
                self.skip();
                closed.then(|| Expr::Call(function, vec![inner]))
            }
            "langle" => {
                let items = self.deeper(Self::items)?;
                let closed = self.peek() == Some(&Token::Command("rangle".into()));
                self.skip();
                closed.then_some(Expr::Tuple { open: '(', close: ')', items })
            }
            "boxed" | "fbox" | "overline" | "vec" | "bar" | "hat" | "underline" => self.argument(),
            "emptyset" | "varnothing" => Some(Expr::Symbol("∅".into())),
            "angle" | "triangle" => self.factor(),
            _ => self.function(FUNCTIONS.iter().find(|function| **function == name)?),
        }
    }

    /// What is in braces, or one token.
    fn argument(&mut self) -> Option<Expr> {
        self.deeper(Self::base)
    }

    /// A function and its argument: a bracket, or the factors up to the next function.
    fn function(&mut self, name: &'static str) -> Option<Expr> {
        let name = match name {
            "asin" => "arcsin",
            "acos" => "arccos",
            "atan" => "arctan",
            "lg" => "log",
            other => other,
        };
        if name == "sqrt" {
            return self.command("sqrt");
        }
        let base = if self.eat('_') { Some(self.argument()?) } else { None };
        let power = if self.eat('^') { Some(self.exponent()??) } else { None };
        let bracketed = matches!(self.peek(), Some(Token::Sign('(' | '{' | '|')));
        let mut factors = vec![if bracketed { self.deeper(Self::base)? } else { self.factor()? }];
        let is_function = |token: Option<&Token>| match token {
            Some(Token::Command(name)) => FUNCTIONS.contains(&name.as_str()) && name != "sqrt",
            _ => false,
        };
        while !bracketed && self.starts_factor() && !is_function(self.peek()) && !self.is('(') {
            factors.push(self.factor()?);
        }
        let argument = in_radians(name, Expr::product(factors));
        let inverse =
            match (name, power.as_ref().and_then(|power| power.exact(0)).as_ref().and_then(small_integer)) {
                ("sin", Some(-1)) => Some("arcsin"),
                ("cos", Some(-1)) => Some("arccos"),
                ("tan", Some(-1)) => Some("arctan"),
                _ => None,
            };
        if let Some(inverse) = inverse {
            return Some(Expr::Call(inverse, vec![argument]));
        }
        let called = match (name, base) {
            ("log", Some(base)) => Expr::Call("log", vec![base, argument]),
            ("log", None) => Expr::Call("log", vec![Expr::integer(10), argument]),
            (_, Some(_)) => return None,
            (name, None) => Expr::Call(name, vec![argument]),
        };
        Some(match power {
            Some(power) => Expr::Power(Box::new(called), Box::new(power)),
            None => called,
        })
    }
}

/// Trigonometric functions of degrees.
fn in_radians(function: &str, argument: Expr) -> Expr {
    let is_trigonometric = ["sin", "cos", "tan", "cot", "sec", "csc"].contains(&function);
    if !is_trigonometric || !argument.any(&|part| matches!(part, Expr::Degree(_))) {
        return argument;
    }
    Expr::Product(vec![argument, Expr::Pi, Expr::integer(180).inverted()])
}
