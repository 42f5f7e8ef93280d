// Runs the flows of one driver: `node run.mjs DRIVER`. As run.py does; a flow is an exported function.
const flows = await import(`./${process.argv[2]}.mjs`);
const found = {};
for (const [name, flow] of Object.entries(flows)) {
  try {
    await flow();
    found[name] = "";
  } catch (error) {
    found[name] = String(error.stack || error);
  }
}
console.log("\n" + JSON.stringify(found));
process.exit(0);
