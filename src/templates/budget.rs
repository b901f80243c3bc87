//! The `each` that counts: the only loop there is, and so the only place where a small template can become endless work.
//!
//! The engine cannot be interrupted and keeps what blocks print in memory of its own. So work and output are counted
//! where they multiply: every turn of a loop is charged with what its part costs once, and what loops print is charged
//! by the byte. No clock is asked: a machine that stands still for a moment must not turn a good mail into a dead letter.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use handlebars::{
    BlockContext, BlockParams, Context, Handlebars, Helper, HelperDef, HelperResult, Output, PathAndJson,
    RenderContext, RenderError, Renderable,
};
use serde_json::Value;

use super::helpers::Stop;

/// Most elements rendered for one part, loops counted at their full cost: a few seconds at the very worst.
pub(super) const WORK_MAX: usize = 5_000_000;
/// Most bytes printed within loops for one part, however much of it reaches the mail.
pub(super) const LOOP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What one part may still do.
pub(super) struct Budget {
    work: AtomicUsize,
    bytes: AtomicUsize,
    cost: usize,
}

impl Budget {
    /// For a part of `cost` elements.
    pub(super) const fn new(cost: usize) -> Self {
        Self { work: AtomicUsize::new(WORK_MAX), bytes: AtomicUsize::new(LOOP_BYTES_MAX), cost }
    }

    fn turn(&self) -> Result<(), Stop> {
        take(&self.work, self.cost)
    }
}

// The engine asks that helpers can be shared between threads. A render runs on one: nothing is lost between load and store.
fn take(left: &AtomicUsize, amount: usize) -> Result<(), Stop> {
    let rest = left.load(Relaxed).checked_sub(amount).ok_or(Stop::TooMuchWork)?;
    left.store(rest, Relaxed);
    Ok(())
}

/// `{{#each list}} {{else}} {{/each}}`, with `@index`, `@first`, `@last`, `@key` and `as |item index|`.
/// Nothing to walk (null, empty, no list): the `else` block.
pub(super) struct Each<'b>(pub(super) &'b Budget);

impl HelperDef for Each<'_> {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        registry: &'reg Handlebars<'reg>,
        context: &'rc Context,
        render: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let (Some(over), Some(body)) = (helper.param(0), helper.template()) else { return Ok(()) };
        let out = &mut Metered { out, budget: self.0 };
        let turns: Vec<(Value, String, &Value)> = match over.value() {
            Value::Array(items) => {
                items.iter().enumerate().map(|(at, item)| (Value::from(at), at.to_string(), item)).collect()
            }
            Value::Object(map) => {
                map.iter().map(|(key, item)| (Value::from(key.as_str()), key.clone(), item)).collect()
            }
            _ => Vec::new(),
        };
        if turns.is_empty() {
            return helper.inverse().map_or(Ok(()), |inverse| inverse.render(registry, context, render, out));
        }
        let (is_map, last) = (over.value().is_object(), turns.len() - 1);
        render.push_block(BlockContext::new());
        for (at, (key, segment, item)) in turns.into_iter().enumerate() {
            self.0.turn()?;
            let mut block = BlockContext::new();
            block.set_local_var("index", Value::from(at));
            block.set_local_var("first", Value::from(at == 0));
            block.set_local_var("last", Value::from(at == last));
            block.set_block_params(names(helper, over, &key, item)?);
            if is_map {
                block.set_local_var("key", key);
            }
            match over.context_path() {
                Some(path) => block.base_path_mut().extend(path.iter().cloned().chain([segment])),
                None => block.set_base_value(item.clone()),
            }
            render.pop_block();
            render.push_block(block);
            body.render(registry, context, render, out)?;
        }
        render.pop_block();
        Ok(())
    }
}

/// `as |item|` and `as |item index|`.
fn names<'rc>(
    helper: &Helper<'rc>,
    over: &PathAndJson<'rc>,
    key: &Value,
    item: &Value,
) -> Result<BlockParams<'rc>, RenderError> {
    let mut names = BlockParams::new();
    let pair = helper.block_param_pair();
    if let Some(name) = helper.block_param().or(pair.map(|(name, _)| name)) {
        match over.context_path() {
            Some(_) => names.add_path(name, Vec::new())?,
            None => names.add_value(name, item.clone())?,
        }
    }
    if let Some((_, name)) = pair {
        names.add_value(name, key.clone())?;
    }
    Ok(names)
}

struct Metered<'a> {
    out: &'a mut dyn Output,
    budget: &'a Budget,
}

impl Output for Metered<'_> {
    fn write(&mut self, text: &str) -> std::io::Result<()> {
        take(&self.budget.bytes, text.len()).map_err(std::io::Error::other)?;
        self.out.write(text)
    }
}
