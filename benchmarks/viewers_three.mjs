// Pictures by three.js in headless Chromium: node viewers_three.mjs JOB.json NODE_MODULES CHROMIUM
// `viewers.py` writes the job and reads what comes back: for every view a file of 8-bit RGBA as the canvas has it (display
// values, premultiplied), lowest row first, and one line of JSON on stdout for every mesh.
import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import { createRequire } from "node:module";

const [jobFile, modules, chromium] = process.argv.slice(2);
const job = JSON.parse(fs.readFileSync(jobFile, "utf8"));
const { chromium: launcher } = createRequire(path.resolve(modules, "x.js"))("playwright-core");

const PAGE = `<!DOCTYPE html><meta charset="utf-8"><script type="importmap">
{"imports": {"three": "/three/build/three.module.js", "three/addons/": "/three/examples/jsm/"}}</script>
<script type="module">
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
import { OBJLoader } from "three/addons/loaders/OBJLoader.js";
import { MTLLoader } from "three/addons/loaders/MTLLoader.js";
import { PLYLoader } from "three/addons/loaders/PLYLoader.js";
import { USDLoader } from "three/addons/loaders/USDLoader.js";

const renderer = new THREE.WebGLRenderer({ alpha: true, antialias: false, preserveDrawingBuffer: true });
renderer.setClearColor(0x000000, 0);

async function open(url) {
  const kind = url.split(".").pop();
  if (kind === "glb") return (await new GLTFLoader().loadAsync(url)).scene;
  if (kind === "usdz") return new USDLoader().loadAsync(url);
  if (kind === "ply") {
    const geometry = await new PLYLoader().loadAsync(url);
    return new THREE.Mesh(geometry, new THREE.MeshBasicMaterial({ vertexColors: geometry.hasAttribute("color") }));
  }
  const folder = url.slice(0, url.lastIndexOf("/") + 1), loader = new OBJLoader();
  const library = /^mtllib (.*)$/m.exec(await (await fetch(url)).text());
  if (!library) return loader.loadAsync(url);
  const manager = new THREE.LoadingManager(), pictures = new Promise((done) => { manager.onLoad = done; });
  const materials = await new MTLLoader(manager).setPath(folder).loadAsync(library[1]);
  materials.preload();
  const object = await loader.setMaterials(materials).loadAsync(url);
  await pictures;
  return object;
}

// The colour of the surface alone; where it is black, what it emits.
function unlit(material) {
  if (material.isMeshBasicMaterial) return material;
  const { map, color, emissive, emissiveMap, vertexColors, alphaTest, transparent, opacity, side, depthWrite } = material;
  const glows = color.getHex() === 0 && emissive && emissive.getHex() !== 0;
  return new THREE.MeshBasicMaterial({
    ...(glows ? { color: emissive, map: emissiveMap } : { color, map }),
    vertexColors, alphaTest, transparent, opacity, side, depthWrite,
  });
}

const normals = new THREE.ShaderMaterial({
  side: THREE.DoubleSide,
  vertexShader: "varying vec3 n; void main() { n = mat3(modelMatrix) * normal;"
    + " gl_Position = projectionMatrix * modelViewMatrix * vec4(position, 1.0); }",
  fragmentShader: "varying vec3 n; void main() { gl_FragColor = vec4(0.5 + 0.5 * normalize(n), 1.0); }",
});

function camera(view, size) {
  const [fx, fy] = view.focal, [cx, cy] = view.center, near = 0.1, camera = new THREE.PerspectiveCamera();
  camera.projectionMatrix.makePerspective(
    -near * cx / fx, near * (size - cx) / fx, near * cy / fy, -near * (size - cy) / fy, near, 100);
  camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
  camera.matrixAutoUpdate = false;
  camera.matrix.set(...view.camera_to_world.flat());
  camera.matrixWorldNeedsUpdate = true;
  return camera;
}

window.show = async (number, item) => {
  const object = await open("/files/" + number + "/" + item.file), scene = new THREE.Scene(), group = new THREE.Group();
  object.updateMatrixWorld(true);
  const box = new THREE.Box3().setFromObject(object, true);
  group.matrixAutoUpdate = false;
  group.matrix.set(...item.world_from_viewer.flat());
  group.matrixWorldNeedsUpdate = true;
  group.add(object);
  scene.add(group);
  object.traverse((node) => {
    if (!node.isMesh) return;
    node.frustumCulled = false;
    const change = item.look === "normals" ? () => normals : unlit;
    node.material = Array.isArray(node.material) ? node.material.map(change) : change(node.material);
  });
  const side = item.side, gl = renderer.getContext();
  renderer.setPixelRatio(1);
  renderer.setSize(side, side);
  for (const [index, view] of item.views.entries()) {
    renderer.render(scene, camera(view, side));
    const pixels = new Uint8Array(4 * side * side);
    gl.readPixels(0, 0, side, side, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    await fetch("/save/" + number + "/" + index, { method: "POST", body: pixels.buffer });
  }
  return { low: box.min.toArray(), high: box.max.toArray() };
};
window.ready = true;
</script>`;

const server = http.createServer((request, response) => {
  const [, kind, ...rest] = decodeURIComponent(request.url.split("?")[0]).split("/");
  if (request.method === "POST") {
    const item = job[Number(rest[0])], chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      fs.writeFileSync(item.views[Number(rest[1])].output, Buffer.concat(chunks));
      response.end();
    });
    return;
  }
  if (!kind) return response.writeHead(200, { "content-type": "text/html" }).end(PAGE);
  const folder = kind === "three" ? path.join(modules, "three") : job[Number(rest.shift())]?.folder;
  const file = folder && path.join(folder, ...rest);
  if (!file || !fs.existsSync(file)) return response.writeHead(404).end();
  response.writeHead(200, { "content-type": file.endsWith("js") ? "text/javascript" : "application/octet-stream" });
  response.end(fs.readFileSync(file));
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));

const profile = fs.mkdtempSync(path.join(os.tmpdir(), "viewers-"));
const browser = await launcher.launchPersistentContext(profile, {
  executablePath: chromium,
  headless: true,
  args: ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
});
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error(String(error)));
  page.on("console", (message) => { if (message.type() === "error") console.error(message.text()); });
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForFunction("window.ready", null, { timeout: 60000 });
  for (const [number, item] of job.entries()) {
    const box = await page.evaluate(([number, item]) => window.show(number, item), [number, item]);
    console.log(JSON.stringify({ name: item.name, ...box }));
  }
} finally {
  await browser.close();
  server.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
