//! Random choices and random JSON schemas; the tests of the server read this file too.

use serde_json::{Map, Value, json};

/// Random choices that follow from a seed.
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }

    /// A schema of no more levels than `depth`, which a small model finds its way out of.
    pub fn schema(&mut self, depth: usize) -> Value {
        let low = self.roll(40) as i64 - 20;
        let (some, more) = (self.roll(3), self.roll(4));
        match self.roll(if depth == 0 { 8 } else { 12 }) {
            0 => json!({"type": "boolean"}),
            1 => json!({"type": ["null", "boolean"]}),
            2 => json!({"type": "integer", "minimum": low, "maximum": low + 3 * more as i64}),
            3 => json!({"type": "number", "exclusiveMinimum": low, "maximum": low + 1 + more as i64}),
            4 => json!({"type": "string", "minLength": some, "maxLength": some + more}),
            5 => {
                let patterns = ["^[a-f]{2,5}$", "^(ab|가)*c$", "^\\d{3}-\\d{4}$", "[xyz]$"];
                json!({"type": "string", "pattern": patterns[more]})
            }
            6 => {
                let values = [json!("red"), json!(17), json!(null), json!([1, {"a": "나"}])];
                json!({"enum": values[..=more].to_vec()})
            }
            7 => json!({"const": {"k": low}}),
            8 | 9 => {
                let names = ["a", "name", "이름", "x y", "q\"q"];
                let properties: Map<String, Value> =
                    names[..=more].iter().map(|name| ((*name).to_owned(), self.schema(depth - 1))).collect();
                let required: Vec<&str> =
                    names[..=more].iter().copied().filter(|_| self.roll(2) == 0).collect();
                json!({"type": "object", "properties": properties, "required": required,
                       "additionalProperties": false})
            }
            10 => json!({"type": "array", "items": self.schema(depth - 1), "minItems": some,
                         "maxItems": some + more}),
            _ => json!({"anyOf": [self.schema(depth - 1), self.schema(depth - 1)]}),
        }
    }
}
