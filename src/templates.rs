//! The only door to handlebars.
