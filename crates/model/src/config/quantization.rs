//! `quantization_config`: the object that says that the matrices are stored as codes of this program's own formats.

use kanana_kernels::{Format, Packed};
use serde_json::{Value, json};

use super::json::Fields;
use crate::Result;

/// The key in config.json.
const KEY: &str = "quantization_config";
/// `quant_method` of this program.
const METHOD: &str = "kanana";

/// Takes the object; none where there is none.
///
/// Errors: another program's method, another version of the layout, or fields that are not understood.
pub(super) fn read(fields: &mut Fields<'_>) -> Result<Option<Format>> {
    let Some(object) = fields.object(KEY)? else { return Ok(None) };
    let mut fields = Fields::nested(fields.file, KEY, object);
    let method = fields.take("quant_method").unwrap_or(Value::Null);
    if method != METHOD {
        let expected = "\"kanana\": of quantised checkpoints only those of `kanana quantize` are read; \
                        use the unquantised (bf16 or f32) checkpoint of this model";
        return Err(fields.wrong("quant_method", &method, expected));
    }
    let name = fields.take("format").unwrap_or(Value::Null);
    let format = Format::ALL.into_iter().find(|format| format.is_quantised() && name == format.name());
    let format = format.ok_or_else(|| fields.wrong("format", &name, "\"q8\" or \"q4\""))?;
    let version = fields.take("version").unwrap_or(Value::Null);
    if version != Packed::VERSION {
        let expected = format!(
            "{}, the layout that this program reads; quantise the original again with `kanana quantize`",
            Packed::VERSION
        );
        return Err(fields.wrong("version", &version, &expected));
    }
    fields.finish()?;
    Ok(Some(format))
}

/// The key and the object for matrices stored in `format`.
pub(super) fn write(format: Format) -> (&'static str, Value) {
    (KEY, json!({"quant_method": METHOD, "format": format.name(), "version": Packed::VERSION}))
}
