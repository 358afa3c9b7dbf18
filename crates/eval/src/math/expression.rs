//! The tree of an answer, and its values: exact where it is rational, complex floating point otherwise.
//!
//! Every computation is bounded: numbers above [`MAX_BITS`] have no exact value, the tree is no deeper than the parser allows.

use std::collections::BTreeSet;

use num_bigint::BigInt;
use num_complex::Complex64;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

/// No exact number gets longer. Units: bits.
const MAX_BITS: u64 = 2048;
/// A matrix or a tuple takes factors into its cells where no more of them come out.
const MAX_SCALED: usize = 1000;

/// What an answer says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    /// A number; `decimal` where it was written with a point, so that it may be rounded.
    Number {
        value: BigRational,
        decimal: bool,
    },
    /// π.
    Pi,
    /// Euler's number.
    Euler,
    /// The imaginary unit.
    Imaginary,
    /// ∞; the negative one is a product.
    Infinity,
    /// A variable, with its subscript.
    Symbol(String),
    /// Digits in another base than ten.
    Based {
        digits: String,
        base: u32,
    },
    Sum(Vec<Expr>),
    Product(Vec<Expr>),
    Power(Box<Expr>, Box<Expr>),
    /// The real root of this degree where there is one.
    Root(Box<Expr>, u32),
    /// A function by its name in LaTeX; of several arguments only `binom` and `log` (base, then argument).
    Call(&'static str, Vec<Expr>),
    /// Both signs.
    PlusMinus(Box<Expr>),
    Percent(Box<Expr>),
    Degree(Box<Expr>),
    /// A tuple or an interval, with its brackets.
    Tuple {
        open: char,
        close: char,
        items: Vec<Expr>,
    },
    /// The order does not matter.
    List(Vec<Expr>),
    Union(Vec<Expr>),
    Matrix(Vec<Vec<Expr>>),
    /// `a = b < c`: one sign fewer than sides.
    Relation {
        sides: Vec<Expr>,
        signs: Vec<char>,
    },
    Words(String),
}

impl Expr {
    pub(super) fn integer(value: i64) -> Self {
        Expr::Number { value: BigRational::from_integer(value.into()), decimal: false }
    }

    /// Minus this.
    pub(super) fn negated(self) -> Self {
        match self {
            Expr::Number { value, decimal } => Expr::Number { value: -value, decimal },
            Expr::Percent(inner) => Expr::Percent(Box::new(inner.negated())),
            other => Expr::product(vec![Expr::integer(-1), other]),
        }
    }

    /// One over this.
    pub(super) fn inverted(self) -> Self {
        Expr::Power(Box::new(self), Box::new(Expr::integer(-1)))
    }

    /// A product; a matrix or a tuple in it takes the factors into its cells.
    pub(super) fn product(mut factors: Vec<Expr>) -> Self {
        if factors.len() == 1 {
            return factors.remove(0);
        }
        let is_vector = |factor: &Expr| matches!(factor, Expr::Matrix(_) | Expr::Tuple { .. });
        if factors.iter().filter(|factor| is_vector(factor)).count() != 1 {
            return Expr::Product(factors);
        }
        let cells = |factor: &Expr| match factor {
            Expr::Matrix(rows) => rows.iter().map(Vec::len).sum(),
            Expr::Tuple { items, .. } => items.len(),
            _ => 0,
        };
        if factors.len() * factors.iter().map(cells).sum::<usize>() > MAX_SCALED {
            return Expr::Product(factors);
        }
        let vector = factors.iter().position(is_vector).map(|at| factors.remove(at));
        let scaled = |cell: Expr| {
            let mut product = factors.clone();
            product.push(cell);
            Expr::product(product)
        };
        match vector {
            Some(Expr::Matrix(rows)) => {
                Expr::Matrix(rows.into_iter().map(|row| row.into_iter().map(scaled).collect()).collect())
            }
            Some(Expr::Tuple { open, close, items }) => {
                Expr::Tuple { open, close, items: items.into_iter().map(scaled).collect() }
            }
            _ => Expr::Product(factors),
        }
    }

    /// The parts, in order.
    fn children(&self) -> Vec<&Expr> {
        match self {
            Expr::Sum(items) | Expr::Product(items) | Expr::Call(_, items) => items.iter().collect(),
            Expr::List(items) | Expr::Union(items) | Expr::Tuple { items, .. } => items.iter().collect(),
            Expr::Relation { sides, .. } => sides.iter().collect(),
            Expr::Power(base, exponent) => vec![base, exponent],
            Expr::Root(inner, _) | Expr::PlusMinus(inner) | Expr::Percent(inner) | Expr::Degree(inner) => {
                vec![inner]
            }
            Expr::Matrix(rows) => rows.iter().flatten().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether this or a part is so.
    pub(super) fn any(&self, holds: &impl Fn(&Expr) -> bool) -> bool {
        holds(self) || self.children().into_iter().any(|child| child.any(holds))
    }

    /// Somewhere a number has a point.
    pub(super) fn is_decimal(&self) -> bool {
        self.any(&|part| matches!(part, Expr::Number { decimal: true, .. }))
    }

    /// The variables.
    pub(super) fn symbols<'a>(&'a self, into: &mut BTreeSet<&'a str>) {
        if let Expr::Symbol(name) = self {
            into.insert(name);
        }
        for child in self.children() {
            child.symbols(into);
        }
    }

    /// With one sign for each `±`.
    pub(super) fn with_sign(&self, plus: bool) -> Expr {
        let all = |items: &[Expr]| items.iter().map(|item| item.with_sign(plus)).collect();
        let one = |inner: &Expr| Box::new(inner.with_sign(plus));
        match self {
            Expr::PlusMinus(inner) if plus => inner.with_sign(plus),
            Expr::PlusMinus(inner) => inner.with_sign(plus).negated(),
            Expr::Sum(items) => Expr::Sum(all(items)),
            Expr::Product(items) => Expr::Product(all(items)),
            Expr::Call(name, items) => Expr::Call(name, all(items)),
            Expr::Tuple { open, close, items } => {
                Expr::Tuple { open: *open, close: *close, items: all(items) }
            }
            Expr::List(items) => Expr::List(all(items)),
            Expr::Union(items) => Expr::Union(all(items)),
            Expr::Relation { sides, signs } => Expr::Relation { sides: all(sides), signs: signs.clone() },
            Expr::Power(base, exponent) => Expr::Power(one(base), one(exponent)),
            Expr::Root(inner, degree) => Expr::Root(one(inner), *degree),
            Expr::Percent(inner) => Expr::Percent(one(inner)),
            Expr::Degree(inner) => Expr::Degree(one(inner)),
            Expr::Matrix(rows) => Expr::Matrix(rows.iter().map(|row| all(row)).collect()),
            other => other.clone(),
        }
    }

    /// The exact value, where it is rational and not too long; variables have the rational values of a point.
    pub(super) fn exact(&self, point: usize) -> Option<BigRational> {
        let value = match self {
            Expr::Number { value, .. } => value.clone(),
            Expr::Symbol(name) => {
                let bits = hash(name, point);
                // All positive, all negative, and mixed: roots and absolute values tell.
                let sign = if point == 1 || point > 1 && bits & 1 == 1 { -1_i64 } else { 1 };
                let above = sign * (2 + (bits >> 8) as i64 % 97);
                BigRational::new(above.into(), (1 + (bits >> 24) as i64 % 31).into())
            }
            Expr::Sum(items) => {
                let mut sum = BigRational::zero();
                for item in items {
                    sum = bounded(sum + item.exact(point)?)?;
                }
                sum
            }
            Expr::Product(items) => {
                let mut product = BigRational::one();
                for item in items {
                    product = bounded(product * item.exact(point)?)?;
                }
                product
            }
            Expr::Power(base, exponent) => power(&base.exact(point)?, &exponent.exact(point)?)?,
            Expr::Root(inner, degree) => {
                let inner = inner.exact(point)?;
                BigRational::new(integer_root(inner.numer(), *degree)?, integer_root(inner.denom(), *degree)?)
            }
            Expr::Percent(inner) => inner.exact(point)? / BigInt::from(100),
            Expr::Degree(inner) => inner.exact(point)?,
            Expr::Call("abs", items) => items.first()?.exact(point)?.abs(),
            Expr::Call("floor", items) => items.first()?.exact(point)?.floor(),
            Expr::Call("ceil", items) => items.first()?.exact(point)?.ceil(),
            Expr::Call("!", items) => {
                let n = small_integer(&items.first()?.exact(point)?).filter(|n| (0..=500).contains(n))?;
                BigRational::from_integer((1..=n).map(BigInt::from).product())
            }
            Expr::Call("binom", items) => {
                let [n, k] = items.as_slice() else { return None };
                let n = small_integer(&n.exact(point)?).filter(|n| (0..=500).contains(n))?;
                let k = small_integer(&k.exact(point)?).filter(|k| (0..=n).contains(k))?;
                let step = |product: BigRational, i: i64| product * BigInt::from(n - k + i) / BigInt::from(i);
                (1..=k).fold(BigRational::one(), step)
            }
            _ => return None,
        };
        bounded(value)
    }

    /// The value in floating point; None where there is none, or it is not finite. Variables have the values of a point: the
    /// first [`REAL_POINTS`] are real, the others complex.
    pub(super) fn value(&self, point: usize) -> Option<Complex64> {
        let real = |x: f64| Complex64::new(x, 0.0);
        let value = match self {
            Expr::Number { value, .. } => real(value.to_f64()?),
            Expr::Pi => real(std::f64::consts::PI),
            Expr::Euler => real(std::f64::consts::E),
            Expr::Imaginary => Complex64::i(),
            Expr::Symbol(name) => {
                let bits = hash(name, point);
                let part = |bits: u64| (bits & 0xf_ffff) as f64 / 1_048_576.0;
                let x = 0.3 + 3.0 * part(bits);
                match point {
                    0..=3 => real(x),
                    4 => real(-x),
                    5..REAL_POINTS => real(x - 1.9),
                    _ => Complex64::new(x, 0.2 + 2.0 * part(bits >> 24)),
                }
            }
            Expr::Sum(items) => {
                items.iter().try_fold(real(0.0), |sum, item| Some(sum + item.value(point)?))?
            }
            Expr::Product(items) => {
                items.iter().try_fold(real(1.0), |product, item| Some(product * item.value(point)?))?
            }
            Expr::Power(base, exponent) => raised(base.value(point)?, exponent.value(point)?),
            Expr::Root(inner, degree) => {
                let inner = inner.value(point)?;
                let degree_f = f64::from(*degree);
                if inner.im == 0.0 && inner.re < 0.0 && degree % 2 == 1 {
                    real(-(-inner.re).powf(1.0 / degree_f))
                } else {
                    raised(inner, real(1.0 / degree_f))
                }
            }
            Expr::Percent(inner) => inner.value(point)? / 100.0,
            Expr::Degree(inner) => inner.value(point)?,
            Expr::Call(name, items) => {
                if let Some(exact) = self.exact_constant() {
                    real(exact.to_f64()?)
                } else {
                    let arguments: Option<Vec<_>> = items.iter().map(|item| item.value(point)).collect();
                    call(name, &arguments?)?
                }
            }
            _ => return None,
        };
        value.is_finite().then_some(value)
    }

    /// The exact value of what has no variables.
    fn exact_constant(&self) -> Option<BigRational> {
        let is_symbol = |part: &Expr| matches!(part, Expr::Symbol(_));
        if self.any(&is_symbol) { None } else { self.exact(0) }
    }
}

/// So many points have real values.
pub(super) const REAL_POINTS: usize = 10;

fn bounded(value: BigRational) -> Option<BigRational> {
    (value.numer().bits() <= MAX_BITS && value.denom().bits() <= MAX_BITS).then_some(value)
}

pub(super) fn small_integer(value: &BigRational) -> Option<i64> {
    value.is_integer().then(|| value.numer().to_i64()).flatten()
}

fn power(base: &BigRational, exponent: &BigRational) -> Option<BigRational> {
    let degree = exponent.denom().to_u32().filter(|degree| *degree <= 64)?;
    let times = exponent.numer().to_i32().filter(|times| times.unsigned_abs() <= 4096)?;
    if base.is_zero() && times <= 0 {
        return (times == 0).then(BigRational::one);
    }
    let bits = base.numer().bits().max(base.denom().bits());
    if bits.saturating_mul(u64::from(times.unsigned_abs())) > MAX_BITS {
        return None;
    }
    if degree > 1 && base.is_negative() {
        return None;
    }
    let root = BigRational::new(integer_root(base.numer(), degree)?, integer_root(base.denom(), degree)?);
    Some(root.pow(times))
}

/// The root, where it is an integer.
fn integer_root(value: &BigInt, degree: u32) -> Option<BigInt> {
    if degree == 0 || value.is_negative() && degree.is_multiple_of(2) {
        return None;
    }
    let root = value.nth_root(degree);
    (root.clone().pow(degree) == *value).then_some(root)
}

fn raised(base: Complex64, exponent: Complex64) -> Complex64 {
    if exponent.im == 0.0 && exponent.re.fract() == 0.0 && exponent.re.abs() < 1e6 {
        return base.powi(exponent.re as i32);
    }
    if base.im == 0.0 && exponent.im == 0.0 && base.re >= 0.0 {
        return Complex64::new(base.re.powf(exponent.re), 0.0);
    }
    base.powc(exponent)
}

fn call(name: &str, arguments: &[Complex64]) -> Option<Complex64> {
    let x = *arguments.last()?;
    let real = |x: f64| Complex64::new(x, 0.0);
    Some(match name {
        "sin" => x.sin(),
        "cos" => x.cos(),
        "tan" => x.tan(),
        "cot" => x.tan().inv(),
        "sec" => x.cos().inv(),
        "csc" => x.sin().inv(),
        "arcsin" => x.asin(),
        "arccos" => x.acos(),
        "arctan" => x.atan(),
        "sinh" => x.sinh(),
        "cosh" => x.cosh(),
        "tanh" => x.tanh(),
        "ln" => x.ln(),
        "log" if arguments.len() == 2 => x.ln() / arguments[0].ln(),
        "exp" => x.exp(),
        "abs" => real(x.norm()),
        "floor" => real(x.re.floor()),
        "ceil" => real(x.re.ceil()),
        // Where no integer is meant, any function that is not linear tells arguments apart.
        "!" | "binom" => arguments.iter().rev().fold(real(0.7), |sum, x| (sum * 1.3 + x * 2.1).cos()),
        _ => return None,
    })
}

/// FNV-1a: the same values in every run.
fn hash(name: &str, point: usize) -> u64 {
    let bytes = name.bytes().chain((point as u64).to_le_bytes());
    let mixed = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mixed ^ (mixed >> 29)
}
