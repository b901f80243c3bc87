// Objects of KEDA against the schemas of its own definitions (2.10.1): node keda.cjs FILE...
// What later versions of KEDA have added (fallback.behavior) is not in them, and not refused.
const { readFileSync } = require("node:fs");
const { join } = require("node:path");

const modules = process.env.NODE_MODULES;
const { parseAllDocuments } = require(join(modules, "yaml"));
const models = require(join(modules, "@kubernetes-models/keda/keda.sh/v1alpha1"));

for (const file of process.argv.slice(2)) {
  for (const document of parseAllDocuments(readFileSync(file, "utf8"))) {
    const object = document.toJS();
    const Model = models[object.kind];
    if (object.apiVersion !== "keda.sh/v1alpha1" || !Model) {
      console.error(`${file}: ${object.apiVersion} ${object.kind} is no object of KEDA`);
      process.exit(1);
    }
    try {
      new Model(object).validate();
    } catch (error) {
      console.error(`${file}: ${object.kind}: ${error.message}`);
      process.exit(1);
    }
    console.log(`INFO ${file} passed for KEDA 2.10: ${object.kind} ${object.metadata.name}`);
  }
}
