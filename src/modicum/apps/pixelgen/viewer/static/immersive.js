// The picture on a curved screen around the wearer (WebXR). Depth is a proxy, not measured: low in the picture is near,
// and dark is a little nearer than bright, both smooth. Each eye sees the picture shifted by it.

const RADIUS = 2.2, ARC = 1.5, EYES = 1.6; // metres, radians, metres above the floor
const COLUMNS = 48;
const SHIFT = 0.012; // of the width, between the nearest and the farthest, for each eye
const SMOOTH = [32, 24]; // the picture is reduced to this for the depth
const LABELLED = 960; // pixels, the least width at which a label is written on it
const STALE = 0.3; // light of a picture that is no longer true

const VERTEX = `#version 300 es
in vec3 place; in vec2 at; uniform mat4 seen; out vec2 uv;
void main() { uv = at; gl_Position = seen * vec4(place, 1.0); }`;

const FRAGMENT = `#version 300 es
precision mediump float;
in vec2 uv; uniform sampler2D picture, smoothed; uniform float shift, light; out vec4 colour;
void main() {
  float luma = dot(texture(smoothed, uv).rgb, vec3(0.299, 0.587, 0.114));
  float near = 0.75 * uv.y + 0.25 * (1.0 - luma) - 0.5;
  colour = vec4(light * texture(picture, vec2(uv.x + shift * near, uv.y)).rgb, 1.0);
}`;

export async function canEnter() {
  try {
    return await navigator.xr?.isSessionSupported("immersive-vr") ?? false;
  } catch {
    return false;
  }
}

export class Theatre {
  /** A curved screen; `left` is called when the wearer takes it off. */
  constructor(left) {
    this.left = left;
    this.light = 1;
    this.turn = 0; // of the pictures; what is decoded too late is not shown
  }

  async enter() {
    this.session = await navigator.xr.requestSession("immersive-vr", { optionalFeatures: ["local-floor"] });
    this.session.addEventListener("end", this.left);
    this.gl = document.createElement("canvas").getContext("webgl2", { xrCompatible: true });
    await this.gl.makeXRCompatible();
    this.session.updateRenderState({ baseLayer: new XRWebGLLayer(this.session, this.gl) });
    try {
      this.space = await this.session.requestReferenceSpace("local-floor");
      this.height = EYES;
    } catch {
      this.space = await this.session.requestReferenceSpace("local");
      this.height = 0;
    }
    this.build();
    this.session.requestAnimationFrame((_, frame) => this.draw(frame));
  }

  /** Put a picture on the screen, given its address, and say on it what it is. */
  async show(url, label) {
    const image = new Image(), turn = ++this.turn;
    image.src = url;
    try {
      await image.decode();
    } catch {
      return; // a newer one has taken its place
    }
    if (!this.gl || turn !== this.turn) return;
    const small = new OffscreenCanvas(...SMOOTH);
    small.getContext("2d").drawImage(image, 0, 0, ...SMOOTH);
    this.upload(0, labelled(image, label));
    this.upload(1, small);
    this.ratio = image.height / image.width;
  }

  /** Show nothing until the next picture comes. */
  clear() {
    this.turn++;
    this.ratio = undefined;
  }

  /** Darken a picture that is no longer true. */
  fade(stale) {
    this.light = stale ? STALE : 1;
  }

  build() {
    const { gl } = this;
    this.program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(this.program, shader);
    }
    gl.linkProgram(this.program);
    gl.useProgram(this.program);
    this.uniforms = Object.fromEntries(["seen", "picture", "smoothed", "shift", "light"].map((name) =>
      [name, gl.getUniformLocation(this.program, name)]));
    gl.uniform1i(this.uniforms.picture, 0);
    gl.uniform1i(this.uniforms.smoothed, 1);
    this.textures = [gl.createTexture(), gl.createTexture()];
    this.buffer = gl.createBuffer();
  }

  upload(unit, source) {
    const { gl } = this;
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, this.textures[unit]);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.LINEAR);
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, source);
  }

  /** A strip of a cylinder, as wide as the arc and as high as the picture asks for. */
  screen() {
    const half = RADIUS * ARC * this.ratio / 2;
    const points = [];
    for (let i = 0; i <= COLUMNS; i++) {
      const turn = ARC * (i / COLUMNS - 0.5), x = RADIUS * Math.sin(turn), z = -RADIUS * Math.cos(turn);
      points.push(x, this.height + half, z, i / COLUMNS, 0, x, this.height - half, z, i / COLUMNS, 1);
    }
    return new Float32Array(points);
  }

  draw(frame) {
    const { gl, session } = this;
    session.requestAnimationFrame((_, next) => this.draw(next));
    const pose = frame.getViewerPose(this.space), layer = session.renderState.baseLayer;
    gl.bindFramebuffer(gl.FRAMEBUFFER, layer.framebuffer);
    gl.clearColor(0.02, 0.025, 0.03, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!pose || !this.ratio) return;
    this.bindScreen();
    gl.uniform1f(this.uniforms.light, this.light);
    for (const view of pose.views) {
      const { x, y, width, height } = layer.getViewport(view);
      gl.viewport(x, y, width, height);
      gl.uniformMatrix4fv(this.uniforms.seen, false, product(view.projectionMatrix, view.transform.inverse.matrix));
      gl.uniform1f(this.uniforms.shift, { left: -SHIFT, right: SHIFT }[view.eye] ?? 0);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 2 * (COLUMNS + 1));
    }
  }

  bindScreen() {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, this.screen(), gl.DYNAMIC_DRAW);
    for (const [name, size, offset] of [["place", 3, 0], ["at", 2, 12]]) {
      const index = gl.getAttribLocation(this.program, name);
      gl.enableVertexAttribArray(index);
      gl.vertexAttribPointer(index, size, gl.FLOAT, false, 20, offset);
    }
  }
}

function labelled(image, label) {
  const scale = Math.max(1, Math.ceil(LABELLED / image.width)), size = 28, edge = 24;
  const canvas = new OffscreenCanvas(scale * image.width, scale * image.height), pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.font = `${size}px sans-serif`;
  const width = pen.measureText(label).width, right = canvas.width - 2 * edge, bottom = canvas.height - 2 * edge;
  pen.fillStyle = "#000a";
  pen.fillRect(right - width - edge / 2, bottom - size, width + edge, 1.5 * size);
  pen.fillStyle = "#e9b872";
  pen.fillText(label, right - width, bottom);
  return canvas;
}

/** a b, both 4x4, column after column. */
function product(a, b) {
  const made = new Float32Array(16);
  for (let column = 0; column < 4; column++)
    for (let row = 0; row < 4; row++)
      for (let k = 0; k < 4; k++) made[4 * column + row] += a[4 * k + row] * b[4 * column + k];
  return made;
}
