// How does TensorFlow.js run an exported network? The requests and answers are those of runners.py, which has the list.
//
//     NODE_PATH=…/node_modules node tensorflowjs.js
//
// Loads what tensorflowjs_converter wrote and computes with the WebAssembly backend, on one thread.

const fs = require('fs');
const path = require('path');
const readline = require('readline');

const answers = fs.createWriteStream(null, {fd: 1});
console.log = console.warn = console.info = console.error; // the answers alone belong on standard output

const tf = require('@tensorflow/tfjs');
require('@tensorflow/tfjs-backend-wasm');

let model;

/** Loads a graph model from a folder with model.json and its files of weights. */
async function load(folder) {
  await tf.setBackend('wasm');
  const description = JSON.parse(fs.readFileSync(path.join(folder, 'model.json')));
  const [group] = description.weightsManifest;
  const weights = Buffer.concat(group.paths.map((name) => fs.readFileSync(path.join(folder, name))));
  model = await tf.loadGraphModel(tf.io.fromMemory({
    modelTopology: description.modelTopology,
    signature: description.signature,
    weightSpecs: group.weights,
    weightData: weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.length),
  }));
}

/** Reads a .npy file of uint8 values as an int32 tensor, TensorFlow.js' type of the network's input, or of float32. */
function readImages(file) {
  const bytes = fs.readFileSync(file);
  const start = 10 + bytes.readUInt16LE(8);
  const header = bytes.toString('latin1', 10, start);
  const isFloat = header.includes("'<f4'");
  if (!isFloat && !header.includes("'|u1'") || header.includes('True')) throw new Error('cannot read ' + header);
  const shape = header.match(/\(([^)]*)\)/)[1].split(',').filter((size) => size.trim()).map(Number);
  if (isFloat) return tf.tensor(new Float32Array(Uint8Array.from(bytes.subarray(start)).buffer), shape, 'float32');
  return tf.tensor(Int32Array.from(bytes.subarray(start)), shape, 'int32');
}

/** Computes the probabilities of images, as nested arrays. */
async function predict(images) {
  const output = model.execute({images}, 'probabilities');
  const probabilities = await output.array();
  output.dispose();
  return probabilities;
}

/** The median time in milliseconds of the calls that fit into so many seconds, at least one. */
async function milliseconds(images, seconds) {
  const times = [];
  let sum = 0;
  while (!times.length || sum < 1000 * seconds) {
    const start = performance.now();
    await predict(images);
    times.push(performance.now() - start);
    sum += times[times.length - 1];
  }
  times.sort((one, other) => one - other);
  return times[Math.floor(times.length / 2)];
}

/** Carries out a request. */
async function answer(request) {
  if (request.do === 'load') {
    await load(request.path);
    return {};
  }
  const images = readImages(request.images);
  try {
    if (request.do === 'predict') return {probabilities: await predict(images)};
    return {ms: await milliseconds(images, request.seconds)};
  } finally {
    images.dispose();
  }
}

(async () => {
  for await (const line of readline.createInterface({input: process.stdin})) {
    let found;
    try {
      found = await answer(JSON.parse(line));
    } catch (error) {
      found = {error: String(error.message || error).trim().split('\n').pop()};
    }
    answers.write(JSON.stringify(found) + '\n');
  }
})();
