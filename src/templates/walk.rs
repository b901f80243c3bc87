//! What a parsed template uses, and whether it may: the walk over its syntax tree before anything is rendered.
//!
//! The walk follows partials with the scope they are included in, as rendering will. It finds cycles, partials chosen
//! by a value, decorators, helpers nobody knows, and variables nobody declared; and it counts what rendering will cost.
//!
//! Invariant: what passed here renders without recursion that has no end, and reaches no variable but those declared.

use std::collections::{BTreeMap, BTreeSet};

use handlebars::{
    Path, PathSeg, Template,
    template::{BlockParam, DecoratorTemplate, HelperTemplate, Parameter, TemplateElement},
};

use super::{LintFault, Part, helpers, manifest::RESERVED, syntax::DEPTH_MAX};

/// Most elements of one part, every inclusion of a partial counted.
const ELEMENTS_MAX: usize = 5_000;
/// Most text of one part, every inclusion of a partial counted.
const RAW_BYTES_MAX: usize = 1024 * 1024;
/// Most different faults that are reported for one part.
const FAULTS_MAX: usize = 50;
/// What the daemon sets under `postrider`.
const POSTRIDER_FIELDS: [&str; 8] = [
    "subject",
    "request_date",
    "has_pdf",
    "attachments",
    "support_email",
    "support_phone",
    "locale",
    "unsubscribe_url",
];
/// What `each` sets.
const LOOP_FIELDS: [&str; 4] = ["index", "first", "last", "key"];

/// What one part uses and costs.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// The declared variables that it reads.
    pub(super) variables: BTreeSet<String>,
    /// How many elements it has, every inclusion of a partial counted.
    pub(super) elements: usize,
    /// How many of them print a value, start a block over one or copy the variables for a partial.
    pub(super) values: usize,
    /// How much fixed text it has.
    pub(super) raw_bytes: usize,
}

/// Walks one part. `partials` are those that it may include.
pub(super) fn walk(
    part: Part,
    template: &Template,
    partials: &BTreeMap<&str, &Template>,
    declared: &BTreeSet<&str>,
) -> Result<Usage, BTreeSet<LintFault>> {
    let mut walker = Walker {
        part,
        partials,
        declared,
        usage: Usage::default(),
        faults: BTreeSet::new(),
        scopes: vec![Scope { variables: true, names: Vec::new(), in_loop: false }],
        files: vec![File { partial: None, has_block: false }],
        stopped: false,
    };
    walker.template(template, 1, 0);
    if walker.faults.is_empty() { Ok(walker.usage) } else { Err(walker.faults) }
}

/// What names mean at one level of blocks, from the engine's point of view: `each`, `with` and partials open one.
struct Scope<'a> {
    /// Whether plain names are variables here. Not within a list's item or a `with`.
    variables: bool,
    /// Names that the block or the partial's parameters add.
    names: Vec<&'a str>,
    /// Whether `@index` and its kin have a value.
    in_loop: bool,
}

struct File<'a> {
    partial: Option<&'a str>,
    has_block: bool,
}

struct Walker<'a> {
    part: Part,
    partials: &'a BTreeMap<&'a str, &'a Template>,
    declared: &'a BTreeSet<&'a str>,
    usage: Usage,
    faults: BTreeSet<LintFault>,
    scopes: Vec<Scope<'a>>,
    files: Vec<File<'a>>,
    stopped: bool,
}

impl<'a> Walker<'a> {
    fn fault(&mut self, line: usize, words: impl Into<String>) {
        let file = match self.files.last().and_then(|file| file.partial) {
            Some(partial) => self.part.partial_file_name(partial),
            None => self.part.file_name().to_owned(),
        };
        self.faults.insert(LintFault::new(file, line, words));
        self.stopped |= self.faults.len() >= FAULTS_MAX;
    }

    fn template(&mut self, template: &'a Template, line: usize, depth: usize) {
        if depth > DEPTH_MAX {
            self.fault(line, format!("blocks and partials are nested more than {DEPTH_MAX} deep"));
            self.stopped = true;
        }
        for (index, element) in template.elements.iter().enumerate() {
            let line = template.mapping.get(index).map_or(line, |at| at.0);
            self.usage.elements += 1;
            if self.usage.elements > ELEMENTS_MAX || self.usage.raw_bytes > RAW_BYTES_MAX {
                self.stopped = true;
                let words = format!("with its partials it has more than {ELEMENTS_MAX} elements or 1 MiB of text");
                self.faults.insert(LintFault::new(self.part.file_name(), None, words));
            }
            if self.stopped {
                return;
            }
            match element {
                TemplateElement::RawString(text) => self.usage.raw_bytes += text.len(),
                TemplateElement::Comment(_) => {}
                TemplateElement::Expression(call) => self.expression(call, line),
                TemplateElement::HtmlExpression(call) => {
                    if self.part == Part::Html {
                        self.fault(line, "{{{ }}} and {{& }} print without escaping: use {{ }}");
                    }
                    self.expression(call, line);
                }
                TemplateElement::HelperBlock(call) => self.block(call, line, depth),
                TemplateElement::PartialExpression(call) | TemplateElement::PartialBlock(call) => {
                    self.partial(call, line, depth);
                }
                TemplateElement::DecoratorExpression(_) | TemplateElement::DecoratorBlock(_) => {
                    self.fault(line, "inline partials and decorators are not allowed: make a file of the partial");
                }
                _ => self.fault(line, "this kind of tag is not allowed"),
            }
        }
    }

    /// `{{name}}` or `{{helper a b}}`.
    fn expression(&mut self, call: &'a HelperTemplate, line: usize) {
        self.usage.values += 1;
        match &call.name {
            Parameter::Subexpression(_) => {
                self.fault(line, "a tag cannot begin with a parenthesis: write {{helper ...}}");
            }
            name if call.params.is_empty() && call.hash.is_empty() && !is_helper(name) => self.parameter(name, line),
            _ => self.call(call, false, line),
        }
    }

    /// A call of a helper, in a tag of its own, as a block or in parentheses.
    fn call(&mut self, call: &'a HelperTemplate, block: bool, line: usize) {
        let name = call.name.as_name().unwrap_or_default();
        match helpers::find(name) {
            None => self.fault(line, format!("there is no helper \"{name}\"")),
            Some(helper) if helper.block != block => {
                let words = if helper.block { "is a block: write {{#" } else { "is no block: write {{" };
                self.fault(line, format!("{name} {words}{name} ...}}}}"));
            }
            Some(helper) if !(helper.least..=helper.most).contains(&call.params.len()) => {
                let wanted = match (helper.least, helper.most) {
                    (least, most) if least == most => format!("{least}"),
                    (least, most) => format!("{least} to {most}"),
                };
                self.fault(line, format!("{name} takes {wanted} parameters, not {}", call.params.len()));
            }
            Some(helper) => {
                if let Some(key) = call.hash.keys().find(|key| !(helper.include_zero && *key == "includeZero")) {
                    self.fault(line, format!("{name} has no parameter called {key}"));
                }
            }
        }
        call.params.iter().chain(call.hash.values()).for_each(|parameter| self.parameter(parameter, line));
    }

    fn block(&mut self, call: &'a HelperTemplate, line: usize, depth: usize) {
        self.usage.values += 1;
        self.call(call, true, line);
        let name = call.name.as_name().unwrap_or_default();
        let opens = matches!(name, "each" | "with");
        if opens {
            let in_loop = name == "each" || self.scopes.last().is_some_and(|scope| scope.in_loop);
            let mut names = Vec::new();
            match &call.block_param {
                Some(BlockParam::Single(one)) => names.extend(one.as_name()),
                Some(BlockParam::Pair((one, two))) => names.extend(one.as_name().into_iter().chain(two.as_name())),
                _ => {}
            }
            self.scopes.push(Scope { variables: false, names, in_loop });
        } else if call.block_param.is_some() {
            self.fault(line, format!("{name} takes no \"as | |\""));
        }
        if let Some(body) = &call.template {
            self.template(body, line, depth + 1);
        }
        if opens {
            self.scopes.pop();
        }
        if let Some(inverse) = &call.inverse {
            self.template(inverse, line, depth + 1);
        }
    }

    /// `{{> name}}`, `{{#> name}} {{/name}}` and `{{> @partial-block}}`.
    fn partial(&mut self, call: &'a DecoratorTemplate, line: usize, depth: usize) {
        self.usage.values += 1;
        let Some(name) = call.name.as_name() else {
            self.fault(line, "the name of a partial cannot be computed");
            return;
        };
        if name == "@partial-block" {
            if !self.files.last().is_some_and(|file| file.has_block) {
                self.fault(line, "@partial-block is used, but this is included without a block");
            }
            if call.template.is_some() || !call.params.is_empty() || !call.hash.is_empty() {
                self.fault(line, "@partial-block takes no parameters and no block");
            }
            return;
        }
        let Some((&name, &partial)) = self.partials.get_key_value(name) else {
            let file = self.part.partial_file_name(name);
            self.fault(line, format!("there is no partial \"{name}\" ({file})"));
            return;
        };
        if self.files.iter().any(|file| file.partial == Some(name)) {
            self.fault(line, format!("the partial \"{name}\" includes itself"));
            return;
        }
        call.params.iter().chain(call.hash.values()).for_each(|parameter| self.parameter(parameter, line));
        for (key, value) in &call.hash {
            // In its block the parameter would be printed where the variable was meant.
            if self.declared.contains(key.as_str()) && value.as_name() != Some(key) {
                self.fault(line, format!("the parameter {key} hides the variable of that name: choose another name"));
            }
        }
        if call.params.len() > 1 {
            self.fault(line, "a partial takes one context at most; other parameters are named (a=b)");
        }
        let (variables, in_loop) = self
            .scopes
            .last()
            .map_or((true, false), |scope| (scope.variables && call.params.is_empty(), scope.in_loop));
        let names = call.hash.keys().map(String::as_str).collect();
        self.scopes.push(Scope { variables, names, in_loop });
        // The engine renders the block with the partial's scope, and before the partial.
        if let Some(block) = &call.template {
            self.template(block, line, depth + 1);
        }
        self.files.push(File { partial: Some(name), has_block: call.template.is_some() });
        self.template(partial, 1, depth + 1);
        self.files.pop();
        self.scopes.pop();
    }

    fn parameter(&mut self, parameter: &'a Parameter, line: usize) {
        match parameter {
            Parameter::Literal(_) => {}
            Parameter::Subexpression(inner) => match inner.as_element() {
                TemplateElement::Expression(call) => self.call(call, false, line),
                _ => self.fault(line, "what is in parentheses must be a call of a helper"),
            },
            Parameter::Path(Path::Local((_, name, raw))) => {
                let in_loop = self.scopes.last().is_some_and(|scope| scope.in_loop);
                if !LOOP_FIELDS.contains(&name.as_str()) || raw.contains("..") || !in_loop {
                    self.fault(line, format!("{raw} has no value here"));
                }
            }
            Parameter::Path(Path::Relative((segments, raw))) => self.path(segments, raw, line),
            _ => self.fault(line, "this is no value"),
        }
    }

    fn path(&mut self, segments: &'a [PathSeg], raw: &str, line: usize) {
        let mut names = segments.iter().filter_map(|segment| match segment {
            PathSeg::Named(name) => Some(name.as_str()),
            _ => None,
        });
        let (first, second) = (names.next(), names.next());
        let plain = raw.strip_prefix("this.").or_else(|| raw.strip_prefix("this/")).or_else(|| raw.strip_prefix("./"));
        let from_root = plain.unwrap_or(raw).starts_with("@root");
        let up = segments.iter().filter(|segment| !matches!(segment, PathSeg::Named(_))).count();
        // A parameter of a block or partial hides everything else of its name, however the path begins.
        if first.is_some_and(|first| !from_root && self.scopes.iter().any(|scope| scope.names.contains(&first))) {
            return;
        }
        let is_variable = if from_root {
            true
        } else {
            match self.scopes.len().checked_sub(1 + up) {
                Some(at) => self.scopes[at].variables,
                None => {
                    self.fault(line, format!("{raw} goes up further than there are blocks"));
                    return;
                }
            }
        };
        match (is_variable, first) {
            (false, _) => {}
            (true, None) => self.fault(line, format!("{raw} is all the variables here: name one")),
            (true, Some(RESERVED)) => match second {
                Some("subject") if self.part == Part::Subject => {
                    self.fault(line, "postrider.subject is what is being made here");
                }
                Some(field) if POSTRIDER_FIELDS.contains(&field) => {}
                _ => self.fault(line, format!("{raw}: postrider has {}", POSTRIDER_FIELDS.join(", "))),
            },
            (true, Some(name)) if self.declared.contains(name) => {
                self.usage.variables.insert(name.to_owned());
            }
            (true, Some(name)) => {
                self.fault(line, format!("variable \"{name}\" is not declared in manifest.toml"));
            }
        }
    }
}

fn is_helper(name: &Parameter) -> bool {
    name.as_name().is_some_and(|name| helpers::find(name).is_some())
}

/// The partials that a template names, itself or in its blocks.
pub(super) fn partials_of(template: &Template, names: &mut BTreeSet<String>) {
    for element in &template.elements {
        match element {
            TemplateElement::HelperBlock(call) => {
                call.template.iter().chain(&call.inverse).for_each(|body| partials_of(body, names));
            }
            TemplateElement::PartialExpression(call) | TemplateElement::PartialBlock(call) => {
                names.extend(call.name.as_name().map(str::to_owned));
                call.template.iter().for_each(|body| partials_of(body, names));
            }
            _ => {}
        }
    }
}
