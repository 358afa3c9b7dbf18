//! Python values outside Python: read from the sandbox's lines, compared as Python and NumPy compare.

use std::collections::BTreeSet;

use serde_json::Value;

/// A value that a program returned. What it is comes from `objects.py`.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `None`.
    None,
    /// `True`, `False`.
    Bool(bool),
    /// Of any size.
    Int(Int),
    /// Infinite and NaN ones included.
    Float(f64),
    /// Real and imaginary part.
    Complex(f64, f64),
    /// What UTF-8 can hold; what it cannot is [`Object::Bytes`] within [`Object::Subclass`].
    Str(String),
    /// `bytes`.
    Bytes(Vec<u8>),
    /// `list`.
    List(Vec<Object>),
    /// `tuple`.
    Tuple(Vec<Object>),
    /// `set`.
    Set(Vec<Object>),
    /// `frozenset`.
    FrozenSet(Vec<Object>),
    /// `dict`: keys and values in turn.
    Dict(Vec<Object>),
    /// A value of a subclass: equal to the plain one, but of another type.
    Subclass(String, Box<Object>),
    /// Anything else, by the name of its type. It equals nothing.
    Opaque(String),
}

/// An integer, written in one way only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Int {
    /// Where it fits.
    Small(i64),
    /// Where it does not: hexadecimal digits, perhaps after a minus.
    Big(String),
}

/// Equal values have equal forms: numbers by what they are worth, sets and dicts in an order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    None,
    Int(Int),
    /// Neither whole nor NaN, by its bits.
    Float(u64),
    Complex(u64, u64),
    Str(String),
    Bytes(Vec<u8>),
    List(Vec<Form>),
    Tuple(Vec<Form>),
    Set(BTreeSet<Form>),
    Dict(BTreeSet<(Form, Form)>),
}

impl Object {
    /// Reads what `encode` wrote; none where it is something else.
    pub fn read(value: &Value) -> Option<Object> {
        Some(match value {
            Value::Null => Object::None,
            Value::Bool(truth) => Object::Bool(*truth),
            Value::Number(number) if number.is_f64() => Object::Float(number.as_f64()?),
            Value::Number(number) => Object::Int(Int::Small(number.as_i64()?)),
            Value::String(text) => Object::Str(text.clone()),
            Value::Array(all) => {
                let (kind, rest) = all.split_first()?;
                let text = |at: usize| rest.get(at).and_then(Value::as_str);
                let float = |at: usize| text(at).and_then(|text| text.parse::<f64>().ok());
                let items = || rest.iter().map(Object::read).collect::<Option<Vec<_>>>();
                match kind.as_str()? {
                    "i" => Object::Int(Int::Big(text(0)?.to_owned())),
                    "f" => Object::Float(float(0)?),
                    "c" => Object::Complex(float(0)?, float(1)?),
                    "b" => Object::Bytes(bytes(text(0)?)?),
                    // Two texts with lone surrogates are equal where their bytes are.
                    "w" => Object::Subclass("surrogates".into(), Box::new(Object::Bytes(bytes(text(0)?)?))),
                    "l" => Object::List(items()?),
                    "t" => Object::Tuple(items()?),
                    "s" => Object::Set(items()?),
                    "z" => Object::FrozenSet(items()?),
                    "d" => Object::Dict(items()?),
                    "sub" => Object::Subclass(text(0)?.to_owned(), Box::new(Object::read(rest.get(1)?)?)),
                    "o" => Object::Opaque(text(0)?.to_owned()),
                    _ => return None,
                }
            }
            Value::Object(_) => return None,
        })
    }

    /// `==` of Python, where no NaN and nothing opaque is inside: those equal nothing.
    pub fn equals(&self, other: &Object) -> bool {
        matches!((self.form(), other.form()), (Some(one), Some(two)) if one == two)
    }

    /// Without the mark of a subclass: what `isinstance` sees.
    pub fn plain(&self) -> &Object {
        match self {
            Object::Subclass(_, plain) => plain.plain(),
            plain => plain,
        }
    }

    /// `type(…) is type(…)`.
    pub fn same_type(&self, other: &Object) -> bool {
        match (self, other) {
            (Object::Subclass(one, _), Object::Subclass(two, _)) => one == two,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// The items of a list or tuple.
    pub fn sequence(&self) -> Option<&[Object]> {
        match self.plain() {
            Object::List(items) | Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// A real number as a float; none for what is no number, or an integer that no float holds.
    pub fn number(&self) -> Option<f64> {
        match self.plain() {
            Object::Bool(truth) => Some(f64::from(*truth)),
            Object::Int(Int::Small(number)) => Some(*number as f64),
            Object::Int(Int::Big(digits)) => {
                let (sign, digits) =
                    digits.strip_prefix('-').map_or((1.0, &**digits), |digits| (-1.0, digits));
                let digits = digits.chars().filter_map(|digit| digit.to_digit(16));
                let number = digits.fold(0.0, |number, digit| number * 16.0 + f64::from(digit));
                number.is_finite().then_some(sign * number)
            }
            Object::Float(number) => Some(*number),
            _ => None,
        }
    }

    fn form(&self) -> Option<Form> {
        let forms = |items: &[Object]| items.iter().map(Object::form).collect::<Option<Vec<_>>>();
        Some(match self {
            Object::None => Form::None,
            Object::Bool(truth) => Form::Int(Int::Small(i64::from(*truth))),
            Object::Int(number) => Form::Int(number.clone()),
            Object::Float(number) => real(*number)?,
            Object::Complex(number, imaginary) if *imaginary == 0.0 => real(*number)?,
            Object::Complex(number, imaginary) if number.is_nan() || imaginary.is_nan() => return None,
            // Plus zero: there are two of it.
            Object::Complex(number, imaginary) => {
                Form::Complex((number + 0.0).to_bits(), imaginary.to_bits())
            }
            Object::Str(text) => Form::Str(text.clone()),
            Object::Bytes(bytes) => Form::Bytes(bytes.clone()),
            Object::List(items) => Form::List(forms(items)?),
            Object::Tuple(items) => Form::Tuple(forms(items)?),
            Object::Set(items) | Object::FrozenSet(items) => Form::Set(forms(items)?.into_iter().collect()),
            Object::Dict(items) => {
                let pairs = items.chunks_exact(2).map(|pair| Some((pair[0].form()?, pair[1].form()?)));
                Form::Dict(pairs.collect::<Option<_>>()?)
            }
            Object::Subclass(_, plain) => plain.form()?,
            Object::Opaque(_) => return None,
        })
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| hex.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// A whole float is worth an integer, exactly.
fn real(number: f64) -> Option<Form> {
    if number.is_nan() {
        return None;
    }
    if number.is_infinite() || number.fract() != 0.0 {
        return Some(Form::Float(number.to_bits()));
    }
    const BOUND: f64 = 9_223_372_036_854_775_808.0;
    if (-BOUND..BOUND).contains(&number) {
        return Some(Form::Int(Int::Small(number as i64)));
    }
    // 2⁶³ and more: the significand shifted by whole and by part of a digit.
    let bits = number.abs().to_bits();
    let shift = (bits >> 52) - 1075;
    let significand = u128::from(bits & ((1 << 52) - 1) | 1 << 52) << (shift % 4);
    let sign = if number < 0.0 { "-" } else { "" };
    Some(Form::Int(Int::Big(format!("{sign}{significand:x}{}", "0".repeat((shift / 4) as usize)))))
}

/// A float, or a list or tuple of one and more of them. Source: evalplus 0.3.1, `is_floats`.
pub(super) fn is_floats(object: &Object) -> bool {
    let float = |object: &Object| matches!(object.plain(), Object::Float(_));
    float(object) || object.sequence().is_some_and(|items| !items.is_empty() && items.iter().all(float))
}

/// `np.allclose(out, expected, rtol=1e-7, atol=atol)`: numbers, and nested lists of them in one shape. What NumPy cannot make
/// an array of numbers of is not close, nor is what it would broadcast.
pub(super) fn all_close(out: &Object, expected: &Object, atol: f64) -> bool {
    if let (Some(out), Some(expected)) = (out.sequence(), expected.sequence()) {
        return out.len() == expected.len()
            && out.iter().zip(expected).all(|(out, expected)| all_close(out, expected, atol));
    }
    let parts = |object: &Object| match object.plain() {
        Object::Complex(real, imaginary) => Some((*real, *imaginary)),
        // NumPy would keep it as an object.
        Object::Int(Int::Big(digits)) if digits.len() > 16 || digits.starts_with('-') => None,
        plain => plain.number().map(|real| (real, 0.0)),
    };
    let (Some(out), Some(expected)) = (parts(out), parts(expected)) else { return false };
    let finite = expected.0.is_finite() && expected.1.is_finite();
    let distance = (out.0 - expected.0).hypot(out.1 - expected.1);
    out == expected || finite && distance <= atol + 1e-7 * expected.0.hypot(expected.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Object {
        Object::read(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[track_caller]
    fn check(one: &str, two: &str, expected: bool) {
        assert_eq!(object(one).equals(&object(two)), expected, "{one} == {two}");
        assert_eq!(object(two).equals(&object(one)), expected, "{two} == {one}");
    }

    #[test]
    fn equality_is_pythons() {
        check("true", "1", true);
        check("1", r#"["f","1.0"]"#, true);
        check(r#"["f","-0.0"]"#, "0", true);
        check(r#"["c","1.0","0.0"]"#, "true", true);
        check(r#"["c","-0.0","1.0"]"#, r#"["c","0.0","1.0"]"#, true);
        check(r#"["f","1e+30"]"#, r#"["i","c9f2c9cd04675000000000000"]"#, true);
        check(r#"["f","1e+30"]"#, r#"["i","c9f2c9cd04674edea40000000"]"#, false);
        check(r#"["f","-9.223372036854776e+18"]"#, "-9223372036854775808", true);
        check(r#"["f","9.223372036854776e+18"]"#, r#"["i","8000000000000000"]"#, true);
        check(r#"["f","inf"]"#, r#"["f","inf"]"#, true);
        check(r#"["f","nan"]"#, r#"["f","nan"]"#, false);
        check(r#"["l",["f","nan"]]"#, r#"["l",["f","nan"]]"#, false);
        check(r#"["l",1,2]"#, r#"["t",1,2]"#, false);
        check(r#"["s",1,["f","2.0"]]"#, r#"["z",2,true]"#, true);
        check(r#"["d",1,"a",2,"b"]"#, r#"["d",2,"b",true,"a"]"#, true);
        check(r#"["d",1,"a"]"#, r#"["d",1,"b"]"#, false);
        check(r#"["sub","Counter",["d",1,2]]"#, r#"["d",1,2]"#, true);
        check(r#"["o","AlwaysEqual"]"#, r#"["o","AlwaysEqual"]"#, false);
        check(r#"["o","AlwaysEqual"]"#, "1", false);
        check("1.5", r#"["f","1.5"]"#, true);
        check("-1e+22", r#"["i","-21e19e0c9bab2400000"]"#, true);
        check("null", "false", false);
        check(r#""1""#, "1", false);
        check(r#"["w","eda080"]"#, r#"["w","eda080"]"#, true);
        check(r#"["w","eda080"]"#, r#""x""#, false);
    }

    #[track_caller]
    fn close(out: &str, expected: &str, close: bool) {
        assert_eq!(all_close(&object(out), &object(expected), 1e-6), close, "{out} {expected}");
    }

    #[test]
    fn closeness_is_numpys() {
        close(r#"["f","1.0000001"]"#, r#"["f","1.0"]"#, true);
        close(r#"["f","1.00001"]"#, r#"["f","1.0"]"#, false);
        close(r#"["l",["f","1e12"],3]"#, r#"["l",["f","1000000000001.0"],["f","3.0"]]"#, true);
        close(r#"["l",["t",1,2]]"#, r#"["l",["l",1,2]]"#, true);
        close(r#"["l",1,2]"#, r#"["l",1]"#, false);
        close(r#"["f","inf"]"#, r#"["f","inf"]"#, true);
        close(r#"["f","1e308"]"#, r#"["f","inf"]"#, false);
        close(r#"["f","nan"]"#, r#"["f","nan"]"#, false);
        close(r#""a""#, r#""a""#, false);
        close("null", "null", false);
        close(r#"["c","1.0","1.0"]"#, r#"["c","1.0","1.0000000001"]"#, true);
    }

    #[test]
    fn what_is_none_of_this_is_refused() {
        for json in [
            r#"{"a":1}"#,
            "[]",
            "[1]",
            r#"["x"]"#,
            r#"["f","one"]"#,
            "9223372036854775808",
            r#"["b","0"]"#,
            r#"["f"]"#,
        ] {
            assert_eq!(Object::read(&serde_json::from_str(json).unwrap()), None, "{json}");
        }
    }
}
