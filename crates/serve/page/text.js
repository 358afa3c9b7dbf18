// ---- text.js: every string of the page in both languages, and which language is shown.

/** Key to [English, Korean]; `{0}`, `{1}` are filled by `t`. */
const STRINGS = {
  skip: ["Skip to the message box", "메시지 입력란으로 건너뛰기"],
  close: ["Close", "닫기"],
  cancel: ["Cancel", "취소"],
  save: ["Save", "저장"],
  undo: ["Undo", "되돌리기"],
  notices: ["Notices", "알림"],
  conversations: ["Conversations", "대화 목록"],
  conversation: ["Conversation", "대화 내용"],
  newChat: ["New chat", "새 대화"],
  untitled: ["New chat", "새 대화"],
  search: ["Search conversations", "대화 검색"],
  noChats: ["No conversations yet. They stay in this browser.", "아직 대화가 없습니다. 대화는 이 브라우저에만 저장됩니다."],
  noMatch: ["Nothing found.", "찾은 대화가 없습니다."],
  rename: ["Rename “{0}”", "“{0}” 이름 바꾸기"],
  newTitle: ["New title", "새 제목"],
  deleteChat: ["Delete “{0}”", "“{0}” 삭제"],
  deleted: ["Deleted.", "삭제했습니다."],
  exportChats: ["Export", "내보내기"],
  importChats: ["Import", "가져오기"],
  imported: ["{0} conversations imported, {1} left out.", "대화 {0}개를 가져왔고 {1}개는 제외했습니다."],
  importBad: ["This file is not an export of conversations.", "대화를 내보낸 파일이 아닙니다."],
  model: ["Model", "모델"],
  noModels: ["No model: server not reached", "모델 없음: 서버에 연결되지 않음"],
  greeting: ["What shall we talk about?", "무엇을 도와드릴까요?"],
  greetingMore: ["The model runs on this server. Nothing you write goes anywhere else.", "모델은 이 서버에서 실행되며, 입력한 내용은 다른 곳으로 전송되지 않습니다."],
  example1: ["Explain attention in a transformer in three sentences.", "트랜스포머의 어텐션을 세 문장으로 설명해 줘."],
  example2: ["Write a Rust function that counts Hangul syllables.", "한글 음절 수를 세는 Rust 함수를 작성해 줘."],
  example3: ["Compare B-trees and LSM trees in a table.", "B-트리와 LSM 트리를 표로 비교해 줘."],
  message: ["Message", "메시지"],
  messageHere: ["Write a message", "메시지를 입력하세요"],
  composerHint: ["Enter sends, Shift+Enter starts a new line. Answers can be wrong.", "Enter로 보내고 Shift+Enter로 줄을 바꿉니다. 답변이 틀릴 수 있습니다."],
  send: ["Send", "보내기"],
  stop: ["Stop (Esc)", "중지 (Esc)"],
  latest: ["To the latest message", "최신 메시지로"],
  you: ["You", "나"],
  assistant: ["Assistant", "어시스턴트"],
  thinking: ["Thinking", "생각 과정"],
  waiting: ["Waiting for the first token", "첫 토큰을 기다리는 중"],
  copy: ["Copy", "복사"],
  copied: ["Copied.", "복사했습니다."],
  copyFailed: ["The browser did not allow copying.", "브라우저가 복사를 허용하지 않았습니다."],
  copyCode: ["Copy code", "코드 복사"],
  edit: ["Edit and resend", "수정해서 다시 보내기"],
  resend: ["Resend", "다시 보내기"],
  regenerate: ["Regenerate", "다시 생성"],
  remove: ["Delete message", "메시지 삭제"],
  showTokens: ["Token probabilities", "토큰 확률 보기"],
  tokenList: ["Tokens with their probabilities; arrow keys move", "토큰과 확률 (화살표 키로 이동)"],
  answering: ["Answering", "답변 중"],
  finished: ["Answer finished: {0}", "답변 완료: {0}"],
  stopped: ["Stopped.", "중지했습니다."],
  cutByLength: ["The answer reached max_tokens or the end of the context. Raise max_tokens in the settings, or ask to continue.", "max_tokens나 컨텍스트 한도에 도달해 답변이 끊겼습니다. 설정에서 max_tokens를 늘리거나 이어서 답해 달라고 해 보세요."],
  call: ["Tool call", "도구 호출"],
  result: ["Result of {0}", "{0}의 결과"],
  resultHint: ["Type what the tool returns", "도구가 돌려준 값을 입력하세요"],
  sendResults: ["Send results", "결과 보내기"],
  brokenCall: ["The arguments are not complete JSON, so this call cannot be answered. Regenerate the message.", "인자가 완전한 JSON이 아니어서 결과를 보낼 수 없습니다. 답변을 다시 생성해 보세요."],
  panel: ["Measurements", "측정"],
  speed: ["Speed", "속도"],
  perSecond: ["tokens/s", "토큰/초"],
  ttft: ["First token after", "첫 토큰까지"],
  elapsed: ["Elapsed", "걸린 시간"],
  promptTokens: ["Prompt tokens", "입력 토큰"],
  answerTokens: ["Answer tokens", "출력 토큰"],
  stats: ["{0} tokens, {1} tokens/s, first after {2}", "토큰 {0}개, {1}토큰/초, 첫 토큰 {2}"],
  probabilities: ["Probabilities", "토큰 확률"],
  probabilitiesHint: ["Colours each token of the next answers; hover or focus a token to see the alternatives. Kept until reload.", "다음 답변부터 토큰을 확률에 따라 칠합니다. 토큰에 마우스를 올리거나 포커스하면 다른 후보가 보입니다. 새로 고치면 사라집니다."],
  legend: ["Colours by probability", "확률별 색"],
  settings: ["Settings", "설정"],
  reset: ["Reset", "초기화"],
  group_model: ["Model and access", "모델과 접속"],
  group_sampling: ["Sampling", "샘플링"],
  group_tools: ["Tools", "도구"],
  samplingHint: ["An empty field leaves the choice to the server.", "비워 두면 서버 기본값을 씁니다."],
  field_system: ["System prompt", "시스템 프롬프트"],
  field_key: ["API key", "API 키"],
  hint_key: ["Only if the server was started with one. Kept in this browser, never exported.", "서버에 키를 설정한 경우에만 필요합니다. 이 브라우저에만 저장되며 내보내지 않습니다."],
  field_stop: ["Stop strings", "중지 문자열"],
  hint_stop: ["One a line; \\n is a line break.", "한 줄에 하나씩. \\n은 줄바꿈입니다."],
  field_tools: ["Tools (JSON list, OpenAI form)", "도구 (JSON 목록, OpenAI 형식)"],
  hint_tools: ["The page runs no tool: it shows each call and asks you for its result.", "페이지가 도구를 실행하지는 않습니다. 호출을 보여 주고 결과를 입력받습니다."],
  hint_temperature: ["0 to 2; 0 takes the likeliest token", "0~2, 0이면 가장 확률 높은 토큰"],
  hint_top_p: ["above 0, to 1", "0 초과 1 이하"],
  hint_top_k: ["whole number; 0 is off", "정수, 0이면 끔"],
  hint_min_p: ["0 to 1", "0~1"],
  hint_max_tokens: ["whole number from 1", "1 이상의 정수"],
  hint_seed: ["whole number from 0", "0 이상의 정수"],
  hint_repetition_penalty: ["above 0, to 2; 1 is off", "0 초과 2 이하, 1이면 끔"],
  badNumber: ["Expected: {0}.", "입력 범위: {0}."],
  badJson: ["Not JSON: {0}", "JSON이 아닙니다: {0}"],
  badTools: ["Expected a list of {\"type\": \"function\", \"function\": {\"name\": …}} with names of a–z, A–Z, 0–9, _ or -.", "{\"type\": \"function\", \"function\": {\"name\": …}}의 목록이어야 하며 이름에는 a–z, A–Z, 0–9, _, -만 쓸 수 있습니다."],
  saved: ["Settings saved.", "설정을 저장했습니다."],
  openSettings: ["Open settings", "설정 열기"],
  retry: ["Try again", "다시 시도"],
  error: ["Error", "오류"],
  error_network: ["The server cannot be reached. Check that it is running and that this page's address is its address, then try again.", "서버에 연결할 수 없습니다. 서버가 실행 중인지, 페이지 주소가 서버 주소와 같은지 확인한 뒤 다시 시도하세요."],
  error_cut: ["The connection ended before the answer did. Try again; the server's log says why if it stopped.", "답변이 끝나기 전에 연결이 끊겼습니다. 다시 시도해 보고, 계속되면 서버 로그를 확인하세요."],
  error_key: ["The server asks for an API key. Enter it in the settings, then try again.", "서버에 API 키가 필요합니다. 설정에 키를 입력한 뒤 다시 시도하세요."],
  error_missing: ["The server does not know this model or address. Choose another model above, then try again.", "서버에 없는 모델이나 주소입니다. 위에서 다른 모델을 고른 뒤 다시 시도하세요."],
  error_request: ["The server refused the request. Change the named value in the settings, or shorten the conversation.", "서버가 요청을 거절했습니다. 설정에서 해당 값을 고치거나 대화를 줄여 보세요."],
  error_busy: ["The server is busy. Wait a moment, then try again.", "서버가 바쁩니다. 잠시 뒤 다시 시도하세요."],
  error_server: ["The server failed. Its log says more; try again.", "서버에서 오류가 났습니다. 서버 로그를 확인한 뒤 다시 시도하세요."],
  storeOff: ["This browser does not let the page store anything: conversations are lost on reload. Export what you want to keep.", "브라우저가 저장을 허용하지 않아 새로 고치면 대화가 사라집니다. 남길 대화는 내보내세요."],
  storeFull: ["The browser's storage is full: the latest changes are not saved. Export, then delete some conversations.", "브라우저 저장 공간이 가득 차 최근 변경이 저장되지 않았습니다. 내보낸 뒤 일부 대화를 삭제하세요."],
  storeCorrupt: ["{0} stored entries cannot be read and were left as they are.", "저장된 항목 {0}개를 읽을 수 없어 그대로 두었습니다."],
  shortcuts: ["Shortcuts", "단축키"],
  key_send: ["Send", "보내기"],
  key_line: ["New line", "줄바꿈"],
  key_stop: ["Stop the answer, close what is open", "답변 중지, 열린 창 닫기"],
  key_new: ["New chat", "새 대화"],
  key_input: ["To the message box", "메시지 입력란으로"],
  key_search: ["Search conversations", "대화 검색"],
  key_panel: ["Measurements", "측정 패널"],
  key_settings: ["Settings", "설정"],
  key_help: ["This list", "이 목록"],
  key_tokens: ["Move between tokens", "토큰 사이 이동"],
};

let language = "en";

/** The string of `key` in the shown language. */
function t(key, ...values) {
  return STRINGS[key][language === "ko" ? 1 : 0].replace(/\{(\d)\}/g, (whole, i) => values[i] ?? whole);
}

/** Shows the page in `chosen` ("ko" or "en"): everything in the document that carries a data-t, data-label or data-placeholder. */
function setLanguage(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = t(node.dataset.placeholder);
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", t(node.dataset.label));
    if (node.matches("button")) node.title = t(node.dataset.label);
  }
}

/** The language of the browser, as far as the page speaks it. */
function browserLanguage() {
  return /^ko\b/i.test(navigator.language) ? "ko" : "en";
}
